"""A capture before it runs: which samples are left, and what it costs."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
import transformers
from transformers import PreTrainedModel

import topkit
from topkit.experiments.capture import files
from topkit.experiments.capture.capture import Capture
from topkit.experiments.capture.layers import Survey
from topkit.experiments.capture.prompts import Passage
from topkit.experiments.capture.tensors import LayerTensors
from topkit.experiments.capture.writer import Writer
from topkit.experiments.model.own_indexer import index_heads, listing_bytes
from topkit.experiments.model.record import check
from topkit.experiments.runs.jobs import Job
from topkit.experiments.runs.lock import locked
from topkit.experiments.runs.plan import WITH_TRANSFORMERS, Plan


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

    def writer(self, force: bool) -> Writer:
        return Writer(self.out, self.origin, range(len(self.passages)), force=force)

    def missing(self) -> list[int]:
        """The samples that the folder does not list, or whose files have other sizes."""
        writer = self.writer(self.force)
        return [n for n, x in enumerate(self.passages) if not writer.lists(x.record(n))]


def capture_sample(request: Request, sample: int, writer: Writer, checked: bool) -> None:
    """Run the model once and write what its attention saw, `checked` against what it computed."""
    passage = request.passages[sample]
    at, early = torch.tensor(passage.positions), passage.prefill
    every = torch.cat([torch.arange(int(at[0]) - early, int(at[0])), at])
    tensors = {}
    for layer, record in request.survey.run(request.model, passage.ids, every).items():
        kept = LayerTensors.of(record, sample, layer, at, early)
        kept.require_finite()
        if checked:
            check(request.model, layer, record, every)
        tensors[layer] = kept.tensors()
    writer.add(passage.record(sample), tensors)


@dataclass(frozen=True, kw_only=True)
class CapturePlan(Plan[Capture]):
    """A capture: a job a sample, and no rows. Bytes are those of the files, to the byte.

    memory = WITH_TRANSFORMERS + weights + the largest sample's files twice, as attention saw them and as
    they are written + 8 T^2, the mask of a pass over T tokens and its copy, and as many again for each head of
    the model's own indexer.
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
    def opened(self) -> Generator[Sequence[Job]]:
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
        listed = any(x.native is not None for x in survey.examples.values())
        writer.close(
            {
                "layers": survey.layers(),
                "skipped": survey.skipped,
                "outline": survey.outline,
                **({"own_k": survey.own_k} if listed and survey.own_k else {}),
                "versions": _versions(),
            }
        )
        return Capture.open(self.request.out)


def _versions() -> dict[str, str]:
    return {
        "topkit": topkit.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def plan_of(request: Request) -> CapturePlan:
    """The plan of what a request leaves to do."""
    missing, sizes = request.missing(), request.sizes
    weights = sum(x.numel() * x.element_size() for x in request.model.parameters())
    longest = max(len(passage.ids) for passage in request.passages)
    whole = 8 * longest**2 + listing_bytes(index_heads(request.model), longest, longest)
    return CapturePlan(
        jobs=tuple(Job({"sample": n}, (request, n)) for n in missing),
        done=len(request.passages) - len(missing),
        rows=0,
        bytes=sum(sizes),
        memory=WITH_TRANSFORMERS + weights + 2 * max(sizes) + whole,
        shares_model=True,
        notes=(request.survey.outline,),
        request=request,
    )
