"""Studies: which cells answer which tasks, under the name of a preset."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

from topkit.errors import InputError
from topkit.experiments.evaluate.job import ROWS, Setting
from topkit.experiments.evaluate.plan import EvaluatePlan, Part, plan_parts
from topkit.experiments.model.compatibility import probe, unserved
from topkit.experiments.model.load import load_once
from topkit.experiments.runs.cells import Cell, in_order
from topkit.experiments.runs.jobs import Job, threads_of
from topkit.experiments.runs.parts import write_whole
from topkit.experiments.runs.plan import Plan, planned
from topkit.experiments.study.report import STUDY, write_report
from topkit.experiments.tasks.chains import VariableTracking
from topkit.experiments.tasks.needles import MultiKey
from topkit.experiments.tasks.pairs import KeyValueRecall
from topkit.grammar import nearest, short
from topkit.indexers.base import Indexer
from topkit.indexers.budget import parse_budgets
from topkit.indexers.spec import parse

NAME = "fidelity-vs-accuracy"


@dataclass(frozen=True)
class Preset:
    """What a study runs, and what it should reach.

    reach: half the width of an interval on an accuracy, at most; exact_between: where exact Top-k
    should score at some budget, else the task is too easy or too hard to tell indexers apart.
    """

    parts: tuple[Part, ...]
    reach: float
    exact_between: tuple[float, float] = (0.3, 0.95)

    @property
    def aims(self) -> dict[str, Any]:
        return {"reach": self.reach, "exact_between": list(self.exact_between)}


# A loss drawn anew at every step; the same with near misses; near misses lost first; a loss that
# lasts, alike in all heads of a layer.
_MANNERS = (
    "",
    "fill='next'",
    "miss='boundary',fill='next'",
    "persist='stream',per='layer'",
)
_REAL = (
    "quantized(dtype='fp8_e4m3')",
    "quantized(dtype='int4')",
    "quantized(dtype='int2')",
    "sign()",
    "refine(sign(),factor=4)",
    "keep(sign(),sink=2,window=4)",
    "shared(sign())",
    "shared(quantized(dtype='int8'))",
    "quest(page_size=4)",
    "streaming_llm(sink=4,window=64)",
    "top_p(quantized(dtype='int4'),mass=0.9)",
    "vattention(quantized(dtype='int4'))",
    "faiss_ivf(nlist=64)",
    "lightning(dtype='fp8')",
)
_SLOW = ("faiss_hnsw(M=16)",)
_CONTROL = ("random()",)


def _cells(specs: Sequence[str], budgets: str) -> list[Cell]:
    return [Cell(parse(spec), budget) for spec in specs for budget in parse_budgets(budgets)]


def _oracles(precisions: Sequence[float], manners: Sequence[str] = _MANNERS) -> list[str]:
    return [f"degraded({p},{manner})" for manner in manners for p in precisions]


def quick() -> Preset:
    """One task in minutes on two cores: at most 30 cells."""
    cells = [
        Cell(),
        *_cells(["exact()"], "2,4,6,16"),
        *_cells(_oracles((0.6, 0.8, 0.95), _MANNERS[:3]), "16"),
        *_cells((*_REAL, *_CONTROL), "16"),
    ]
    part = Part((MultiKey(wording="trained"),), (4096,), 24, tuple(in_order(cells)))
    return Preset((part,), reach=0.12)


def full() -> Preset:
    """The same task over five times the haystacks, with more budgets and precisions.

    About an hour of two cores. A GPU gains little on a model this small; many cores do.
    """
    cells = {
        *quick().parts[0].cells,
        *_cells(["exact()"], "2,3,4,6,8,12,16,32,64"),
        *_cells(_oracles((0.6, 0.8, 0.9, 0.95)), "16"),
        *_cells(_SLOW, "16"),
    }
    part = Part((MultiKey(wording="trained"),), (4096,), 128, tuple(in_order(cells)))
    return Preset((part,), reach=0.06)


def tasks() -> Preset:
    """Other tasks, answer lengths and a longer context, quick's cells over full's haystacks: hours."""
    cells = [
        Cell(),
        *_cells(["exact()"], "4,8,16,32"),
        *_cells(_oracles((0.6, 0.8, 0.95), _MANNERS[:3]), "16"),
        *_cells((*_REAL, *_CONTROL), "16"),
    ]
    needles = MultiKey(wording="trained")
    settings = (
        (KeyValueRecall(), 4096),
        (needles, 8192),
        (VariableTracking(hops=2), 4096),
        (replace(needles, digits=10), 4096),
    )
    parts = [Part((task,), (length,), 128, tuple(in_order(cells))) for task, length in settings]
    return Preset(tuple(parts), reach=0.06)


PRESETS = {"quick": quick, "full": full, "tasks": tasks}


@planned
def run_study(
    name: str,
    preset: str,
    out: str | Path,
    model: str | Path = "reference",
    *,
    sparse_from: str = "question",
    observe: bool | str = True,
    text: str | Path | None = None,
    seed: int = 0,
    device: str | None = None,
    dtype: str | None = None,
    jobs: int = 1,
    batch_size: int | None = None,
    force: bool = False,
) -> Plan[Path]:
    """Evaluate a preset's cells into RUN and write its report; a rerun computes what is missing.

    The options are those of `evaluate`. Cells that the model cannot serve are left out, with a note
    in the plan and in the report that says why.
    Returns: the report's path.
    Raises: InputError for an unknown study or preset, and as `evaluate` does.
    """
    for word, known, kind in ((name, [NAME], "study"), (preset, PRESETS, "preset")):
        if word not in known:
            raise InputError(f"unknown {kind} {word!r}; {nearest(word, known)}")
    setting = Setting(
        out=Path(out),
        model=str(model),
        device=device,
        dtype=dtype,
        seed=seed,
        sparse_from=sparse_from,
        observe=observe,
        rows=ROWS if batch_size is None else batch_size,
        text=None if text is None else Path(text),
        threads=threads_of(jobs),
    )
    chosen, loaded = PRESETS[preset](), load_once(str(model), device, dtype)
    reasons = _left_out(loaded[0], chosen)
    about = {"study": name, "preset": preset, "model": str(model), "aims": chosen.aims}
    if reasons:
        about["left out"] = "; ".join(reasons.values())
    parts = [
        replace(part, cells=tuple(c for c in part.cells if c.indexer not in reasons))
        for part in chosen.parts
    ]
    notes = [f"{short(indexer)} is left out: {reason}" for indexer, reason in reasons.items()]
    evaluation = plan_parts(loaded, setting, parts, workers=jobs, force=force, notes=notes)
    return StudyPlan(
        jobs=evaluation.jobs,
        done=evaluation.done,
        rows=evaluation.rows,
        bytes=evaluation.bytes,
        memory=evaluation.memory,
        workers=jobs,
        notes=evaluation.notes,
        evaluation=evaluation,
        about=about,
    )


@dataclass(frozen=True, kw_only=True)
class StudyPlan(Plan[Path]):
    """An evaluation of a preset's parts, and then the report. Estimates: the evaluation's."""

    evaluation: EvaluatePlan = field(repr=False)
    # What study.json says.
    about: dict[str, Any] = field(repr=False)
    verb: ClassVar[str] = EvaluatePlan.verb
    work: ClassVar[Any] = staticmethod(EvaluatePlan.work)

    def describe(self) -> list[dict[str, Any]]:
        return self.evaluation.describe()

    def lines(self) -> list[str]:
        return self.evaluation.lines()

    @contextmanager
    def opened(self) -> Iterator[Sequence[Job]]:
        with self.evaluation.opened() as jobs:
            # Before the jobs, so that a study cut short can be reported as what it is.
            text = json.dumps(self.about, indent=1) + "\n"
            path = self.evaluation.out / STUDY
            write_whole(path, lambda to: to.write_text(text, encoding="utf-8"))
            yield jobs

    def result(self, results: Sequence[None]) -> Path:
        self.evaluation.result(results)
        return write_report(self.evaluation.out)


def _left_out(model: Any, preset: Preset) -> dict[Indexer, str]:
    """The indexers that the model cannot serve, each with the reason."""
    cells = in_order(cell for part in preset.parts for cell in part.cells)
    recipes = dict.fromkeys(cell.indexer for cell in cells if cell.indexer is not None)
    return unserved(model, recipes, probe(model, purpose="evaluated"))
