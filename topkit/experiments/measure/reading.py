"""What a measurement of a dump reads, and how long it may take, said before it begins."""

from __future__ import annotations

import math
import os

from topkit.experiments.capture.files import readable
from topkit.experiments.measure.request import Request
from topkit.indexers.base import Indexer
from topkit.indexers.combinator import leaf
from topkit.indexers.lightning import GIVEN, lightning

# Bytes of a disk in a second, and seconds of a core for a score of one query head and key: measured on CPUs, of
# recipes that score keys. On a GPU a score takes this share of it.
DISK, SCORE, GPU = 1e9, 15e-9, 1 / 100


JUDGED = "a learned indexer's tensors alone: judged against the Top-k of its float32 scores"
# Engines differ: DeepSeek's own code and SGLang rotate, others need not.
TWICE = (
    "index keys are those of a cache: where the engine rotated them before it stored them, say hadamard=false, for "
    "fp8, int4 and fp4 rotate (docs/dumps.md)"
)


def reading(request: Request) -> tuple[str, ...]:
    """A line of bytes and minutes where the capture is a file of others; nothing for a capture's own folder.

    Minutes: the bytes of the digest and of the tensors of the layers that are asked, and a score of each query head
    and key for each cell and its judge, by all cores.
    """
    capture = request.capture
    if capture.dump is None:
        return ()
    records = {record["sample"]: record for record in capture.manifest["samples"]}
    first = capture.shape_of(capture.samples[0], capture.layers[0])
    index = first.index_queries if first.index_only else None
    heads = (first.queries if index is None else index).shape[1]
    scores = sum(
        heads * len(records[sample]["positions"]) * records[sample]["tokens"]
        for sample, _ in request.places
    )
    recipes = len({cell.indexer for cell in request.cells}) + 1
    each = SCORE * (GPU if request.setting.device.startswith("cuda") else 1 / _cores())
    places, there = len(request.places), len(capture.manifest["files"])
    tensors = capture.dump.bytes * places // there
    seconds = (capture.dump.digested + tensors) / DISK + scores * recipes * each
    part = ", read" if places == there else f", of which {readable(tensors)} are read,"
    return (
        f"{capture.dump.path.name}: {readable(capture.dump.bytes)}{part} a layer of a sample at a time "
        f"({places} of them); {_minutes(seconds)}",
        *((JUDGED,) if first.index_only else ()),
        *((TWICE,) if capture.dump.paged and any(_rotates(c.indexer) for c in request.cells) else ()),
    )  # fmt: skip


def _rotates(recipe: Indexer | None) -> bool:
    """Whether a recipe rotates the index keys that it is given."""
    own = None if recipe is None else leaf(recipe)
    if not isinstance(own, lightning) or own.weights != GIVEN:
        return False
    return own.hadamard and own.dtype != "fp32"


def _minutes(seconds: float) -> str:
    return "less than a minute" if seconds < 60 else f"about {math.ceil(seconds / 60):,} minutes"


def _cores() -> int:
    return os.cpu_count() or 1
