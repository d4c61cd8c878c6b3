"""model + prompts -> Capture: one forward a sample, what attention saw written as it was."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
import transformers
from transformers import PreTrainedModel

import topkit
from topkit.errors import InputError
from topkit.experiments.capture import files
from topkit.experiments.capture.capture import Capture
from topkit.experiments.capture.layers import Survey, survey_layers
from topkit.experiments.capture.prompts import (
    Passage,
    read_text,
    task_passages,
    text_passages,
)
from topkit.experiments.capture.tensors import LayerTensors
from topkit.experiments.model.digests import tokenizer_digest, weights_digest
from topkit.experiments.model.load import load, require_positions
from topkit.experiments.model.record import check
from topkit.experiments.runs.folder import locked
from topkit.experiments.runs.jobs import Job
from topkit.experiments.runs.plan import WITH_TRANSFORMERS, Plan, planned
from topkit.experiments.tasks import Task, make_task, task_name


@planned
def capture_model(
    model: str | Path | PreTrainedModel,
    *,
    task: str | Task | None = None,
    text: str | Path | None = None,
    length: int,
    samples: int,
    out: str | Path,
    layers: str | Sequence[int] = "all",
    positions: str | Sequence[int] | None = None,
    hidden: bool = False,
    seed: int = 0,
    device: str | None = None,
    dtype: str | None = None,
    force: bool = False,
    tokenizer: Any = None,
) -> Plan[Capture]:
    """Capture a model's attention inputs over the prompts of a task or the tokens of a text file.

    layers: "all", "0,3,5" or numbers. positions: "last:32", "every:64" or numbers; by default the
    question and answer of a task, the last 32 of a text. hidden: hidden states, the query latent
    of MLA, and RoPE as well. A rerun computes what is missing.
    Raises: InputError for a model that cannot be captured (named, with the reason), a text too
    short, a disk too small, and a folder that holds another capture (unless `force`).
    """
    if samples < 1 or length < 1:
        raise InputError(f"samples and length must be at least 1; got {samples} and {length}")
    if (task is None) == (text is None):
        raise InputError("give either a task or a text file")
    # What cannot be read is refused before the model is loaded.
    words = "" if text is None else read_text(text)
    made = make_task(task) if isinstance(task, str) else task
    if isinstance(model, PreTrainedModel):
        loaded, name = model, model.config.name_or_path or type(model).__name__
    else:
        name = str(model)
        loaded, tokenizer = load(name, device=device, dtype=dtype)
    require_positions(loaded, length)
    if made is not None:
        source = {"task": task_name(made)}
        passages = task_passages(made, tokenizer, length, samples, seed)
    else:
        source = {"text_sha256": hashlib.sha256(words.encode()).hexdigest()}
        passages = text_passages(words, tokenizer, length, samples)
    origin = {
        "model": name,
        "tokenizer_sha256": tokenizer_digest(tokenizer),
        "source": source,
        "length": length,
        "seed": seed,
    }
    return capture_passages.plan(
        loaded,
        passages,
        out=out,
        origin=origin,
        layers=layers,
        positions=positions,
        hidden=hidden,
        force=force,
    )


@planned
def capture_passages(
    model: PreTrainedModel,
    passages: Sequence[Passage],
    *,
    out: str | Path,
    origin: Mapping[str, Any],
    layers: str | Sequence[int] = "all",
    positions: str | Sequence[int] | None = None,
    hidden: bool = False,
    force: bool = False,
) -> Plan[Capture]:
    """Capture a model's attention inputs over token sequences; see `capture_model`.

    `origin` says where model and tokens are from: a folder of the same origin is gone on with.
    """
    passages = [passage.at(positions) for passage in passages]
    survey = survey_layers(model, passages, layers, hidden)
    origin = {
        **origin,
        "weights_sha256": weights_digest(model),
        "dtype": str(model.dtype).removeprefix("torch."),
        "layers": sorted(survey.modules),
        "hidden": hidden,
    }
    request = Request(model, survey, tuple(passages), Path(out), origin, force)
    missing, sizes = request.missing(), request.sizes
    weights = sum(x.numel() * x.element_size() for x in model.parameters())
    mask = 8 * max(len(passage.ids) for passage in passages) ** 2
    return CapturePlan(
        jobs=tuple(Job({"sample": n}, (request, n)) for n in missing),
        done=len(passages) - len(missing),
        rows=0,
        bytes=sum(sizes),
        memory=WITH_TRANSFORMERS + weights + 2 * max(sizes) + mask,
        shares_model=True,
        notes=tuple(f"layer {x['layer']} is left out: {x['reason']}" for x in survey.skipped),
        request=request,
    )


@dataclass(frozen=True)
class Request:
    """What is to be captured into a folder, whatever is there already."""

    model: PreTrainedModel
    survey: Survey
    passages: tuple[Passage, ...]
    out: Path
    origin: Mapping[str, Any]
    force: bool

    @property
    def sizes(self) -> list[int]:
        """Bytes of each sample's files."""
        return [self.survey.bytes(passage) for passage in self.passages]

    def writer(self, force: bool) -> files.Writer:
        return files.Writer(self.out, self.origin, range(len(self.passages)), force=force)

    def missing(self) -> list[int]:
        """The samples that the folder does not list, or whose files have other sizes."""
        writer = self.writer(self.force)
        return [n for n, x in enumerate(self.passages) if not writer.lists(x.record(n))]


def capture_sample(request: Request, sample: int, writer: files.Writer, checked: bool) -> None:
    """Run the model once and write what its attention saw, `checked` against what it computed."""
    passage = request.passages[sample]
    at = torch.tensor(passage.positions)
    tensors = {}
    for layer, seen in request.survey.run(request.model, passage.ids, at).items():
        kept = LayerTensors.of(seen, sample, layer, at)
        kept.require_finite()
        if checked:
            check(request.model, layer, seen, at)
        tensors[layer] = kept.tensors()
    writer.add(passage.record(sample), tensors)


@dataclass(frozen=True, kw_only=True)
class CapturePlan(Plan[Capture]):
    """A capture: a job a sample, and no rows. Bytes are those of the files, to the byte.

    memory = WITH_TRANSFORMERS + weights + the largest sample's files twice, as attention saw them and as
    they are written + 8 T^2, the mask of a pass over T tokens and its copy.
    """

    request: Request = field(repr=False)
    verb: ClassVar[str] = "capturing"
    work: ClassVar[Any] = staticmethod(capture_sample)

    def describe(self) -> list[dict[str, Any]]:
        request = self.request
        described = {
            "out": str(request.out),
            "samples": len(request.passages),
            "layers": sorted(request.survey.modules),
            "skipped": request.survey.skipped,
        }
        return [{**described, **self.numbers}]

    def lines(self) -> list[str]:
        request = self.request
        return [
            f"{len(request.passages)} samples of {len(request.survey.modules)} layers: {self.bytes} "
            f"bytes ({files.readable(self.bytes)}) in {request.out}"
        ]

    @contextmanager
    def opened(self) -> Iterator[Sequence[Job]]:
        request, sizes = self.request, self.request.sizes
        files.require_space(request.out, sum(sizes[n] for n in request.missing()))
        with locked(request.out):
            writer = request.writer(request.force)
            writer.begin()
            missing = [n for n, x in enumerate(request.passages) if not writer.has(x.record(n))]
            yield [Job({"sample": n}, (request, n, writer, n == missing[0])) for n in missing]

    def result(self, results: Sequence[None]) -> Capture:
        # What was written is read anew: a run that ends here may have begun in another process.
        writer, survey = self.request.writer(False), self.request.survey
        writer.close(
            {"layers": survey.layers(), "skipped": survey.skipped, "versions": _versions()}
        )
        return Capture.open(self.request.out)


def _versions() -> dict[str, str]:
    return {
        "topkit": topkit.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
