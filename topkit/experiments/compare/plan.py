"""A comparison before it runs: a job a layer of a sequence."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar

from topkit.experiments.capture.capture import Capture
from topkit.experiments.compare.comparison import Comparison
from topkit.experiments.compare.gathered import gathered
from topkit.experiments.compare.layer import LayerRows, Question, compare_layer
from topkit.experiments.measure.layer import Setting
from topkit.experiments.measure.reading import JUDGED, reading
from topkit.experiments.measure.request import Request
from topkit.experiments.runs.cells import Cell
from topkit.experiments.runs.jobs import Job
from topkit.experiments.runs.plan import PROCESS, Plan
from topkit.experiments.runs.runners import Crew
from topkit.fidelity.truth import MEMORY
from topkit.indexers.upstream import upstream_layers

# Bytes of a row in memory.
IN_MEMORY = 60


@dataclass(frozen=True, kw_only=True)
class ComparePlan(Plan[Comparison]):
    """A comparison: a job a layer of a sequence; nothing is written. Rows are those of one list a layer.

    reads: bytes of the dumps. memory: workers x (PROCESS + 1.5 tensors of each dump + a chunk of exact rows) + rows.
    """

    question: Question = field(repr=False)
    margins: Mapping[str, float] = field(repr=False)
    reads: int
    verb: ClassVar[str] = "comparing"
    work: ClassVar[Any] = staticmethod(compare_layer)

    def describe(self) -> list[dict[str, Any]]:
        question = self.question
        named = {"baseline": repr(question.baseline), "candidate": repr(question.candidate)}
        return [{**named, "k": str(question.budget), "reads": self.reads, **self.numbers}]

    def lines(self) -> list[str]:
        sequences = len({job.inputs["sample"] for job in self.jobs})
        plural = "s" * (sequences != 1)
        return [
            f"{sequences} sequence{plural}, {len(self.jobs)} jobs: {self.reads / 2**20:,.1f} MiB to read, "
            f"{self.rows:,} rows and more where heads have lists of their own"
        ]

    @contextmanager
    def opened(self) -> Generator[Sequence[Job]]:
        yield self.jobs

    def result(self, results: Sequence[LayerRows]) -> Comparison:
        return gathered(self.question, self.margins, results)


def plan_of(
    question: Question,
    margins: Mapping[str, float],
    dump: Capture,
    rerun: Capture | None,
    layers: Sequence[int],
    crew: Crew,
) -> ComparePlan:
    """A plan of all sequences of a dump."""
    places = [(sample, layer) for sample in dump.samples for layer in layers]
    of_files = [_bytes(one) for one in (dump, rerun) if one is not None]
    sizes = [sum(by_place[place] for by_place in of_files) for place in places]
    largest = max(sizes)
    positions = {s["sample"]: len(s["positions"]) for s in dump.manifest["samples"]}
    rows = sum(positions[sample] for sample, _ in places)
    memory = crew.workers * (PROCESS + 3 * largest // 2 + min(MEMORY, 2 * largest))
    cells = tuple(Cell(r, question.budget) for r in (question.baseline, question.candidate))
    setting = Setting(question.seed, question.device, None, False, None)
    # Here the baseline judges.
    every = reading(Request(dump, cells, tuple(layers), setting, False))
    said = [line for line in every if line != JUDGED]
    line = dump.manifest.get("outline")
    return ComparePlan(
        jobs=tuple(_job(question, dump, rerun, *place) for place in places),
        done=0,
        rows=rows,
        bytes=0,
        memory=memory + rows * IN_MEMORY,
        workers=crew.workers,
        runner=crew.runner,
        notes=(
            *(() if line is None else (line,)),
            *said,
        ),
        question=question,
        margins=margins,
        reads=sum(sizes),
    )


def _job(question: Question, dump: Capture, rerun: Capture | None, sample: int, layer: int) -> Job:
    above = (upstream_layers(r, layer) for r in (question.baseline, question.candidate))
    read = dict.fromkeys([layer, *(one for some in above for one in some)])
    # Parts of the dumps alone: jobs are sent to other processes.
    parts = [None if one is None else one.only(sample, *read) for one in (dump, rerun)]
    return Job({"sample": sample, "layer": layer}, (question, *parts, sample, layer))


def _bytes(dump: Capture) -> dict[tuple[int, int], int]:
    """The bytes of each sample and layer."""
    return {(file["sample"], file["layer"]): file["bytes"] for file in dump.manifest["files"]}
