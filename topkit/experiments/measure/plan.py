"""A measurement before it runs: which cells of which layers, what is left of them, what it takes."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa

from topkit.experiments.measure.layer import measure_layer
from topkit.experiments.measure.measured import Measured
from topkit.experiments.measure.reading import reading
from topkit.experiments.measure.request import Request
from topkit.experiments.runs.cell_parts import parts_of
from topkit.experiments.runs.folder import Who, claim, require_same, settle
from topkit.experiments.runs.jobs import Job
from topkit.experiments.runs.parts import PART, paths_of
from topkit.experiments.runs.plan import Plan
from topkit.experiments.runs.run_file import describe
from topkit.experiments.runs.runners import Crew

# Bytes of a row in a part.
ON_DISK = 22


@dataclass(frozen=True, kw_only=True)
class MeasurePlan(Plan[Measured]):
    """A measurement: a job a sample and layer. Rows are those at the level of heads.

    bytes: PART a job and ON_DISK a row; memory: see Request.
    """

    request: Request = field(repr=False)
    verb: ClassVar[str] = "measuring"
    work: ClassVar[Any] = staticmethod(measure_layer)

    def describe(self) -> list[dict[str, Any]]:
        out = self.request.setting.out
        return [{"out": out and str(out), "cells": self.request.described, **self.numbers}]

    def lines(self) -> list[str]:
        jobs = len(self.jobs) + self.done
        return [
            f"{jobs} layers of samples, {len(self.request.cells)} cells: {self.rows:,} rows at the "
            f"level of heads; {self.done} of {jobs} jobs done"
        ]

    @contextmanager
    def opened(self) -> Generator[Sequence[Job]]:
        request, out = self.request, self.request.setting.out
        if out is None:
            yield self.jobs
            return
        identity, contents = request.identity, request.contents()
        who = Who(request.shard, request.digest)
        with claim(out, identity, contents, who, force=request.force) as hold:
            origin = request.capture.manifest.get("origin", {})
            layers, cells = list(request.layers), request.described
            run = describe(out, identity, contents, capture=origin, layers=layers, cells=cells)
            if hold.alone:
                settle(out, run)
            jobs = request.left(run=run)
            hold.begun()
            yield jobs

    def result(self, results: Sequence[pa.Table | None]) -> Measured:
        out = self.request.setting.out
        form = "reduced" if self.request.setting.reduce else "measure"
        if out is None:
            return Measured(form, [table for table in results if table])
        return Measured(form, self._written(out / "fidelity"))

    def _written(self, folder: Path) -> list[Path]:
        """The parts of the folder; of a shard, its own."""
        if self.request.shard.whole:
            return paths_of(folder)
        names = parts_of(folder, set(self.request.names))
        return paths_of(folder, names) if names else []


def plan_of(request: Request, crew: Crew, notes: Sequence[str] = ()) -> MeasurePlan:
    out, contents, shard = request.setting.out, request.contents(), request.shard
    shard.require_no(request.force, out)
    if out is not None:
        require_same(out, request.identity, contents, force=request.force)
    jobs, rows = request.left(request.force), request.rows()
    line = request.capture.manifest.get("outline")
    return MeasurePlan(
        jobs=jobs,
        done=len(request.places) - len(jobs),
        rows=rows,
        bytes=0 if out is None else len(request.places) * PART + rows * ON_DISK,
        memory=request.memory(crew.workers, rows),
        workers=crew.workers,
        runner=crew.runner,
        notes=(
            *(() if line is None else (line,)),
            *reading(request),
            *notes,
            *shard.notes,
        ),
        request=request,
    )
