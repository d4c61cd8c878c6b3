"""What an evaluation covers: tasks, lengths, haystacks, cells; and which of it is left to do."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from topkit.experiments.evaluate.job import Piece
from topkit.experiments.evaluate.setting import Setting
from topkit.experiments.runs import folder
from topkit.experiments.runs.cell_parts import done
from topkit.experiments.runs.cells import Cell, chunks
from topkit.experiments.runs.identity import Contents, of_all
from topkit.experiments.runs.jobs import Job
from topkit.experiments.runs.parts import digest
from topkit.experiments.runs.run_file import describe
from topkit.experiments.runs.shards import WHOLE, Shard
from topkit.experiments.tasks import Task, task_name


@dataclass(frozen=True)
class Part:
    """Tasks at some lengths, each on a number of haystacks from the first on, for some cells."""

    tasks: tuple[Task, ...]
    lengths: tuple[int, ...]
    haystacks: int
    cells: tuple[Cell, ...]
    first: int = 0

    def pieces(self, setting: Setting, identity: dict[str, Any]) -> Iterator[Piece]:
        """The jobs. Which cells go together depends on what the run is, never on what is done."""
        for task in self.tasks:
            for length in self.lengths:
                for sample in range(self.first, self.first + self.haystacks):
                    inputs = {
                        **identity,
                        "task": repr(task),
                        "length": length,
                        "sample": sample,
                        "sparse_from": setting.sparse_from,
                    }
                    for some in chunks(self.cells, setting.rows):
                        yield Piece(task, length, sample, tuple(some), digest(inputs))

    def as_files_allow(self) -> list[Part]:
        """This part, but for tasks that have fewer prompts: these are parts of their own."""
        most = {task: task.most_samples() for task in self.tasks}
        short = {
            task: n - self.first
            for task, n in most.items()
            if n is not None and n < self.first + self.haystacks
        }
        rest = tuple(task for task in self.tasks if task not in short)
        parts: list[Part] = [replace(self, tasks=rest)] if rest else []
        return parts + [replace(self, tasks=(task,), haystacks=n) for task, n in short.items()]

    @property
    def columns(self) -> list[dict[str, str]]:
        """What names the cells in every table."""
        return [cell.columns for cell in self.cells]


@dataclass(frozen=True)
class Request:
    """All that is to be evaluated into a folder, whatever is done already; and which share of it here."""

    setting: Setting
    parts: tuple[Part, ...]
    identity: dict[str, Any]
    force: bool
    shard: Shard = WHOLE

    @property
    def digest(self) -> str:
        """A name for all of it: alike for its shards, of which each is another share."""
        pieces = [
            (piece.name, cell.columns)
            for part in self.parts
            for piece in part.pieces(self.setting, self.identity)
            for cell in piece.cells
        ]
        return digest([self.shard.of, pieces])

    def pieces(self, shard: Shard) -> list[list[Piece]]:
        """The jobs of each part that are a shard's: all of a haystack go to one shard, which reads it."""
        places: dict[str, int] = {}
        pieces: list[list[Piece]] = []
        for part in self.parts:
            every = part.pieces(self.setting, self.identity)
            placed = [(places.setdefault(piece.name, len(places)), piece) for piece in every]
            pieces.append([piece for place, piece in placed if shard.holds(place)])
        return pieces

    def contents(self) -> dict[str, Contents]:
        """What the indexers and tasks hold beside their names."""
        recipes = [c.indexer for part in self.parts for c in part.cells if c.indexer is not None]
        return of_all([*recipes, *(task for part in self.parts for task in part.tasks)])

    def left(
        self, afresh: bool = False, run: str = "", shard: Shard | None = None
    ) -> list[list[Job]]:
        """The jobs of each part, for the cells that no table holds; `afresh`: for all cells.

        What a run was writing when it died counts as missing, and so does accuracy without the fidelity
        that was observed with it. run: the id of the run that they write for. shard: by default this one.
        """
        out, there = self.setting.out, set[tuple[str, ...]]()
        setting = replace(self.setting, run=run)
        if not afresh:
            there |= set(done(out / "accuracy", but=folder.gone(out, "fidelity")))
        jobs: list[list[Job]] = []
        for pieces in self.pieces(shard or self.shard):
            jobs.append([])
            for piece in pieces:
                names = {cell: (piece.name, *cell.columns.values()) for cell in piece.cells}
                cells = tuple(cell for cell in piece.cells if names[cell] not in there)
                there.update(names.values())
                if cells:
                    inputs = {"haystack": piece.name, "cells": [cell.columns for cell in cells]}
                    jobs[-1].append(Job(inputs, (setting, replace(piece, cells=cells))))
        return jobs

    def describe(self) -> str:
        """Write run.json: what the rows were made from, and by what; returns the run's id."""
        run, contents = "", self.contents()
        for part in self.parts:
            run = describe(
                self.setting.out,
                self.identity,
                contents,
                model=self.setting.model,
                # RULER's own has a parameter of that name, which its text says already.
                tasks=[{**task.parameters(), "task": task_name(task)} for task in part.tasks],
                lengths=list(part.lengths),
                samples=part.haystacks,
                **({"first": part.first} if part.first else {}),
                cells=part.columns,
                sparse_from=self.setting.sparse_from,
                rows=self.setting.rows,
            )
        return run
