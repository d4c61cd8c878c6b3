"""A study in one run: a preset's cells evaluated, then its report."""

# pyright: strict, reportUnknownMemberType=false
from __future__ import annotations

import json
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

from topkit.documents import path_of
from topkit.errors import InputError
from topkit.experiments.evaluate.plan import EvaluatePlan, plan_parts
from topkit.experiments.evaluate.setting import ROWS, Setting
from topkit.experiments.model.compatibility import probe, unserved
from topkit.experiments.model.load import load_once, named
from topkit.experiments.runs.cells import in_order
from topkit.experiments.runs.jobs import Job, threads_of
from topkit.experiments.runs.parts import write_whole
from topkit.experiments.runs.plan import Plan, planned
from topkit.experiments.study.presets import NAME, PRESETS, Preset
from topkit.experiments.study.report import STUDY, write_report
from topkit.grammar import nearest, short
from topkit.indexers.base import Indexer


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
        out=path_of(out, "a folder for the run"),
        model=named(model),
        device=device,
        dtype=dtype,
        seed=seed,
        sparse_from=sparse_from,
        observe=observe,
        rows=ROWS if batch_size is None else batch_size,
        text=None if text is None else path_of(text, "a text"),
        threads=threads_of(jobs),
    )
    chosen, loaded = PRESETS[preset](), load_once(named(model), device, dtype)
    reasons = _left_out(loaded[0], chosen)
    about = {"study": name, "preset": preset, "model": named(model), "aims": chosen.aims}
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
    def opened(self) -> Generator[Sequence[Job]]:
        with self.evaluation.opened() as jobs:
            # Before the jobs, so that a study cut short can be reported as what it is.
            text = json.dumps(self.about, indent=1) + "\n"
            path = self.evaluation.out / STUDY
            write_whole(path, lambda to: to.write_text(text, encoding="utf-8"), parents=False)
            yield jobs

    def result(self, results: Sequence[None]) -> Path:
        self.evaluation.result(results)
        return write_report(self.evaluation.out)


def _left_out(model: Any, preset: Preset) -> dict[Indexer, str]:
    """The indexers that the model cannot serve, each with the reason."""
    cells = in_order(cell for part in preset.parts for cell in part.cells)
    recipes = dict.fromkeys(cell.indexer for cell in cells if cell.indexer is not None)
    return unserved(model, recipes, probe(model, purpose="evaluated"))
