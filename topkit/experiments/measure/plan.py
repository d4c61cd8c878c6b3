"""A measurement before it runs: which cells of which layers, what is left of them, what it takes."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any, ClassVar

import pyarrow as pa
import torch

import topkit
from topkit.experiments.capture.capture import Capture
from topkit.experiments.measure.layer import Setting, measure_layer, recipes_of
from topkit.experiments.measure.summary import summarise
from topkit.experiments.runs.cell_parts import done
from topkit.experiments.runs.cells import Cell
from topkit.experiments.runs.fidelity_rows import table
from topkit.experiments.runs.folder import claim, require_same, settle
from topkit.experiments.runs.identity import Contents, of_all
from topkit.experiments.runs.jobs import Job
from topkit.experiments.runs.parts import PART, digest, read_table
from topkit.experiments.runs.plan import PROCESS, Plan
from topkit.experiments.runs.run_file import describe
from topkit.fidelity.truth import MEMORY
from topkit.indexers.upstream import upstream_layers

# Bytes of a row in a part, and in memory.
ON_DISK, IN_MEMORY = 22, 250
ORDER = ("indexer", "budget", "sample", "layer", "level", "head")


@dataclass(frozen=True)
class Measured:
    """The rows, and what they say of each indexer at each budget."""

    table: pa.Table

    def summary(self, metrics: Sequence[str] = ()) -> list[dict[str, Any]]:
        """A row an indexer and budget: mean, 1st percentile, worst row and interval.

        `metrics` names further columns of METRICS whose means are wanted.
        """
        return summarise(self.table, metrics)


@dataclass(frozen=True)
class Request:
    """What is to be measured, all of it, whatever is done already."""

    capture: Capture
    cells: tuple[Cell, ...]
    layers: tuple[int, ...]
    setting: Setting
    force: bool

    @property
    def identity(self) -> dict[str, Any]:
        """All that the rows depend on, beside sample, layer and cell."""
        reference = self.setting.reference
        return {
            "capture": self.capture.fingerprint,
            "seed": self.setting.seed,
            "device": torch.device(self.setting.device).type,
            "reference": "" if reference is None else repr(reference),
            "reduce": self.setting.reduce,
            "topkit": topkit.__version__,
        }

    def contents(self) -> dict[str, Contents]:
        """What the indexers hold beside their names."""
        recipes = (*(cell.indexer for cell in self.cells), self.setting.reference)
        return of_all(recipe for recipe in recipes if recipe is not None)

    def sources(self, layer: int, cells: Sequence[Cell]) -> list[int]:
        """The layers whose tensors the cells of a layer are measured with, that layer first."""
        above = (upstream_layers(recipe, layer) for recipe in recipes_of(cells, self.setting))
        return list(dict.fromkeys([layer, *chain.from_iterable(above)]))

    @property
    def places(self) -> list[tuple[int, int]]:
        """The samples and layers: a job each."""
        return [(sample, layer) for sample in self.capture.samples for layer in self.layers]

    @property
    def described(self) -> list[dict[str, str]]:
        return [cell.columns for cell in self.cells]

    def left(self, afresh: bool = False, run: str = "") -> tuple[Job, ...]:
        """Jobs for the cells that no part holds; for all where everything is done afresh.

        run: the id of the run that they write for.
        """
        out, identity = self.setting.out, self.identity
        there: set[tuple[str, ...]] = set()
        if out is not None and not afresh:
            there = set(done(out / "fidelity"))
        jobs = []
        for sample, layer in self.places:
            name = digest({**identity, "sample": sample, "layer": layer})
            cells = tuple(c for c in self.cells if (name, *c.columns.values()) not in there)
            if cells:
                # A part of the capture alone: jobs are sent to other processes.
                part = self.capture.only(sample, *self.sources(layer, cells))
                job = (replace(self.setting, run=run), part, sample, layer, cells, name)
                jobs.append(Job({"job": name}, job))
        return tuple(jobs)

    def rows(self) -> int:
        """Rows at the level of heads."""
        heads = self.capture.load(*self.places[0]).queries.shape[1]
        positions = {s["sample"]: len(s["positions"]) for s in self.capture.manifest["samples"]}
        rows = sum(1 if self.setting.reduce else positions[sample] for sample, _ in self.places)
        return rows * len(self.cells) * heads

    def memory(self, workers: int, rows: int) -> int:
        """workers x (PROCESS + 1.5 tensors + a chunk of exact rows) + rows that go into no folder.

        tensors: those of the largest layer, beside which stands an index of its keys, and of the layers
        whose selections are read there; the chunk is at most MEMORY.
        """
        files = self.capture.manifest["files"]
        tensors = max(file["bytes"] for file in files if file["layer"] in self.layers)
        kept = rows * IN_MEMORY if self.setting.out is None else 0
        above = max(len(self.sources(layer, self.cells)) - 1 for layer in self.layers)
        held = (3 + 2 * min(above, 1)) * tensors // 2
        return workers * (PROCESS + held + min(MEMORY, 2 * tensors)) + kept


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
        with claim(out, identity, contents, force=request.force):
            origin = request.capture.manifest.get("origin", {})
            layers, cells = list(request.layers), request.described
            run = describe(out, identity, contents, capture=origin, layers=layers, cells=cells)
            settle(out, run)
            yield request.left(run=run)

    def result(self, results: Sequence[pa.Table | None]) -> Measured:
        out = self.request.setting.out
        tables = [t for t in results if t] if out is None else [read_table(out / "fidelity")]
        rows = table("reduced" if self.request.setting.reduce else "measure", tables)
        return Measured(rows.sort_by([(name, "ascending") for name in ORDER]))


def plan_of(request: Request, workers: int) -> MeasurePlan:
    out, contents = request.setting.out, request.contents()
    if out is not None:
        require_same(out, request.identity, contents, force=request.force)
    jobs, rows = request.left(request.force), request.rows()
    line = request.capture.manifest.get("outline")
    return MeasurePlan(
        jobs=jobs,
        done=len(request.places) - len(jobs),
        rows=rows,
        bytes=0 if out is None else len(request.places) * PART + rows * ON_DISK,
        memory=request.memory(workers, rows),
        workers=workers,
        notes=() if line is None else (line,),
        request=request,
    )
