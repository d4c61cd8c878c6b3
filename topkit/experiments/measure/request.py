"""What a measurement covers: a capture, cells, layers; and which of it is left to do."""

# pyright: strict
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import torch

import topkit
from topkit.experiments.capture.capture import Capture
from topkit.experiments.measure.layer import Setting, recipes_of
from topkit.experiments.runs.cell_parts import done
from topkit.experiments.runs.cells import Cell
from topkit.experiments.runs.identity import Contents, of_all
from topkit.experiments.runs.jobs import Job
from topkit.experiments.runs.parts import digest
from topkit.experiments.runs.plan import PROCESS
from topkit.experiments.runs.shards import WHOLE, Shard
from topkit.fidelity.truth import MEMORY
from topkit.indexers.upstream import upstream_layers

# Bytes of a row in memory.
IN_MEMORY = 250


@dataclass(frozen=True)
class Request:
    """What is to be measured, all of it, whatever is done already."""

    capture: Capture
    cells: tuple[Cell, ...]
    layers: tuple[int, ...]
    setting: Setting
    force: bool
    shard: Shard = WHOLE

    @property
    def digest(self) -> str:
        """A name for all of it: alike for its shards, of which each is another share."""
        return digest([self.shard.of, self.identity, self.every, self.described])

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
    def every(self) -> list[tuple[int, int]]:
        """The samples and layers of all shards."""
        return [(sample, layer) for sample in self.capture.samples for layer in self.layers]

    @property
    def places(self) -> list[tuple[int, int]]:
        """The samples and layers: a job each."""
        return [place for number, place in enumerate(self.every) if self.shard.holds(number)]

    @property
    def names(self) -> list[str]:
        """The name of each job, which its part's begins with."""
        identity = self.identity
        return [digest({**identity, "sample": s, "layer": layer}) for s, layer in self.places]

    @property
    def described(self) -> list[dict[str, str]]:
        return [cell.columns for cell in self.cells]

    def left(self, afresh: bool = False, run: str = "") -> tuple[Job, ...]:
        """Jobs for the cells that no part holds; for all where everything is done afresh.

        run: the id of the run that they write for.
        """
        out = self.setting.out
        there: set[tuple[str, ...]] = set()
        if out is not None and not afresh:
            there = set(done(out / "fidelity"))
        jobs = list[Job]()
        for (sample, layer), name in zip(self.places, self.names, strict=True):
            cells = tuple(c for c in self.cells if (name, *c.columns.values()) not in there)
            if cells:
                # A part of the capture alone: jobs are sent to other processes.
                part = self.capture.only(sample, *self.sources(layer, cells))
                job = (replace(self.setting, run=run), part, sample, layer, cells, name)
                jobs.append(Job({"job": name}, job))
        return tuple(jobs)

    def rows(self) -> int:
        """Rows at the level of heads."""
        heads = self.capture.shape_of(*self.every[0]).queries.shape[1]
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
        loaded = (3 + 2 * min(above, 1)) * tensors // 2
        return workers * (PROCESS + loaded + min(MEMORY, 2 * tensors)) + kept
