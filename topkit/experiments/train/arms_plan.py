"""The plan of a study that trains: a job a model, in shards where it is cut, and then the report."""

from __future__ import annotations

import json
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import topkit
from topkit.errors import InputError
from topkit.experiments.model.load import load_once
from topkit.experiments.runs.jobs import Job
from topkit.experiments.runs.lock import locked, shared
from topkit.experiments.runs.parts import PART, digest, write_whole
from topkit.experiments.runs.plan import WITH_TRANSFORMERS, Plan
from topkit.experiments.runs.shards import WHOLE, Shard
from topkit.experiments.study.course import Course, folders
from topkit.experiments.study.design import Study
from topkit.experiments.study.ending import ended
from topkit.experiments.study.kinds import EXACT
from topkit.experiments.study.own_kinds import KIND
from topkit.experiments.study.own_run import describe_study
from topkit.experiments.study.reading import STUDY
from topkit.experiments.tasks import Haystack, task_name
from topkit.experiments.tasks import prompt as make_prompt
from topkit.experiments.train.arms import BEFORE, DENSE, PARTS, TOPK, Arm, Training, Work, make_arm
from topkit.experiments.train.corpus import corpus_digest
from topkit.experiments.train.recipe import Sft
from topkit.experiments.train.sft import ratio_of

MODELS, TOKENS = "models", "tokens"
# The kinds of studies whose models are evaluated; of others the heads are measured alone.
EVALUATED = ("topk-sft",)
NOTE = "shard {}: one in {} of the models"


@dataclass(frozen=True, kw_only=True)
class ArmsPlan(Plan[Path]):
    """A job a model, and then the report. Rows: models; bytes: three times a model's weights, PART a part."""

    out: Path
    about: Mapping[str, Any] = field(repr=False)
    # The models of this share.
    names: tuple[str, ...] = ()
    device: str = "cpu"
    shard: Shard = WHOLE
    force: bool = False
    verb: ClassVar[str] = "training and evaluating"
    work: ClassVar[Any] = staticmethod(make_arm)

    def describe(self) -> list[dict[str, Any]]:
        return [{"out": str(self.out), "models": list(self.names), **self.numbers}]

    def lines(self) -> list[str]:
        return [*self.names, f"{self.done} of {len(self.names)} models done"]

    @contextmanager
    def opened(self) -> Generator[Sequence[Job]]:
        text = json.dumps(self.about, indent=1) + "\n"
        shard, of = self.shard, f"{self.shard.of} {text}"
        lock = locked(self.out) if shard.whole else shared(self.out, shard.name, of)
        with lock as hold:
            describe_study(self.out, self.about, self.device, self.force)
            write_whole(self.out / STUDY, lambda to: to.write_text(text, encoding="utf-8"))
            hold.begun()
            yield [job for job in self.jobs if self.force or not job.arguments[-1].exists()]

    def result(self, results: Sequence[None]) -> Path:
        return self.out if self.left_over else ended(self.out, self.shard)

    @property
    def left_over(self) -> int:
        if self.shard.whole:
            return 0
        return sum(not (self.out / PARTS / name).exists() for name in self.about[PARTS])


def plan_of(course: Course) -> ArmsPlan:
    """The plan of a study that trains; models whose parts are there are done.

    Raises: InputError for indexers other than exact Top-k, and for a shard by force.
    """
    study = course.study
    course.shard.require_no(course.force, course.out)
    if any(cell.indexer not in (None, EXACT) for cell in study.cells):
        raise InputError("a study that trains decodes by exact Top-k; leave other indexers out")
    every = list(_every(course, study.kind in EVALUATED))
    own = own_share(every, course.shard)
    left = [one for one in own if course.force or not one[-1].exists()]
    about = {**course.about, KIND: study.kind, "topkit": topkit.__version__}
    about |= {"arms": [arm.name for _, arm, _ in every], PARTS: [part.name for *_, part in every]}
    return ArmsPlan(
        jobs=tuple(Job({"model": one[1].name}, one) for one in left),
        done=len(own) - len(left),
        rows=len(own),
        bytes=len(own) * PART,
        memory=course.crew.workers * 4 * WITH_TRANSFORMERS,
        workers=course.crew.workers,
        runner=course.crew.runner,
        notes=() if course.shard.whole else (NOTE.format(course.shard, course.shard.of),),
        out=course.out,
        about=about,
        names=tuple(arm.name for _, arm, _ in own),
        device=study.device or "cpu",
        shard=course.shard,
        force=course.force,
    )


def own_share(every: Sequence[Work], shard: Shard) -> list[Work]:
    """The share of a shard, in the order of all: seed by seed, as a page pairs them."""
    # Dealt attention by attention: they differ in what they cost.
    dealt = sorted(arm for _, arm, _ in every)
    mine = {arm for place, arm in enumerate(dealt) if shard.holds(place)}
    return [one for one in every if one[1] in mine]


def _every(course: Course, accuracy: bool) -> Iterator[Work]:
    """All models of a study, each with where its part stands: a name of all that it depends on."""
    study = course.study
    for start, folder in zip(study.model, folders(study.model), strict=True):
        own = study.of(start)
        _require_room(own, start)
        corpus = corpus_digest(own.corpus)
        training = _training(course, own, start, folder, corpus, accuracy)
        for arm in _arms(own, start, folder):
            what = {**asdict(arm), "recipe": asdict(training.recipe), "topkit": topkit.__version__}
            what |= {"corpus": corpus, "books": training.books, "accuracy": accuracy}
            what["asked"] = [(task_name(t), n, own.at(n)) for t, n in own.settings]
            what["budgets"] = [str(k) for k in own.budgets]
            yield training, arm, course.out / PARTS / f"{arm.name}-{digest(what)}.json"


def _require_room(study: Study, start: str) -> None:
    """Draw the prompts before anything is trained: what does not fit into its length is refused now."""
    _, tokenizer = load_once(start, study.device, study.dtype)
    text = None if study.text is None else Haystack.of_file(study.text)
    for task, length in study.settings:
        for sample in range(study.at(length)):
            make_prompt(task, tokenizer, length, sample, seed=study.seed[0], haystack=text)


def _training(
    course: Course, study: Study, start: str, folder: str, corpus: str, accuracy: bool
) -> Training:
    said = dict(study.training)
    sizes = {name: said[name] for name in ("steps", "rows", "length", "peak", "warmup", "least") if name in said}  # fmt: skip
    recipe = replace(Sft.of(start), **sizes)
    device = study.device or "cpu"
    text = {"start": start, "corpus": corpus, "books": said.get("books")}
    return Training(
        out=course.out,
        models=said.get("models", course.out / MODELS),
        tokens=course.out / TOKENS / f"{folder}-{digest(text)}",
        study=replace(study, own={}),
        recipe=recipe,
        corpus=study.corpus,
        books=said.get("books"),
        device=device,
        workers=0 if device == "cpu" else 4,
        threads=course.crew.threads,
        accuracy=accuracy,
    )


def _arms(study: Study, start: str, folder: str) -> list[Arm]:
    """The start, and for each seed dense and every ratio."""
    said = study.training
    ratios = [str(ratio) for ratio in said["ratios"]]
    for ratio in ratios:
        ratio_of(TOPK, ratio)
    arms = [Arm(start, folder, BEFORE)]
    for seed in range(said.get("seeds", 1)):
        arms.append(Arm(start, folder, DENSE, seed=seed))
        arms += [Arm(start, folder, TOPK, ratio, seed) for ratio in ratios]
    return arms
