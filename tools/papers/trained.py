"""What the bundled model's lightning indexer finds, and what its cheaper forms find of that."""

from __future__ import annotations

from papers.data import LENGTH, Data
from papers.kept import rows
from papers.ours import Ours, mean_of

WIDE = LENGTH // 8


def lightning_precision(data: Data) -> Ours:
    found = rows(data.reference, "lightning()", round(0.016 * LENGTH))
    return mean_of(found.by_layer(found["recall"]))


def misa_overlap(data: Data) -> Ours:
    found = rows(data.reference, "misa(heads=1)", WIDE, "lightning()")
    return mean_of(found.by_layer(found["recall"]))


def indexcache_overlap(data: Data) -> Ours:
    found = rows(data.reference, "indexcache(pattern='FS')", WIDE, "lightning()")
    reused = found.where(found["layer"] % 2 == 1)
    return mean_of(reused.by_layer(reused["recall"]))


def hisa_indexer(data: Data) -> Ours:
    recipe = "hisa(page_size=16, pages=64, weights='reference')"
    found = rows(data.reference, recipe, 256, "lightning()")
    return mean_of(found.by_layer(found["recall"] / (2 - found["recall"])))


CLAIMS = {
    "lightning-precision": lightning_precision,
    "misa-overlap": misa_overlap,
    "indexcache-overlap": indexcache_overlap,
    "hisa-indexer": hisa_indexer,
}
