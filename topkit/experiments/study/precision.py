"""What one list a layer finds of its heads' own Top-k, and of the list that its heads choose together."""

# pyright: strict, reportUnknownMemberType=false
from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import nan
from typing import Any

import torch
from torch import Tensor

from topkit.experiments.capture.tensors import LayerTensors
from topkit.experiments.measure.replay import Replay
from topkit.experiments.runs.cells import Cell
from topkit.experiments.runs.judged import Judged
from topkit.indexers import exact, lightning, shared
from topkit.indexers.base import Indexer, Selection

# The Top-k of a layer's attention, summed over its heads: what lightning is trained to choose.
SUMMED = shared(exact(), per="layer", how="attention")
# The heads' own lists, and their common one: what the others are compared with.
ORACLES: tuple[Indexer, ...] = (exact(), SUMMED)

# Means over the heads and positions of a layer that are not trivial: the share of each head's own Top-k and of the
# common list that was chosen, of the same indexer's keys in float32, of the attention, and bytes read a token.
MEANS = ("own", "summed", "fp32", "mass", "bytes")
Row = dict[str, Any]


@dataclass(frozen=True)
class Judge:
    """The selections of the layers of a sample, judged. `load` gives the tensors of a layer."""

    cells: Sequence[Cell]
    seed: int
    device: torch.device
    load: Callable[[int], LayerTensors]

    def rows(self, layers: Sequence[int]) -> list[Row]:
        """A row a layer and cell: MEANS, NaN where one has no meaning."""
        return [row for layer in layers for row in self._layer(self.load(layer))]

    def _layer(self, tensors: LayerTensors) -> Iterator[Row]:
        length = tensors.keys.shape[2]
        ks = {cell: cell.k(length) or length for cell in self.cells}
        replay = Replay(tensors, max(ks.values()), self.seed, self.device, self.load)
        recipes = dict.fromkeys(cell.indexer for cell in self.cells if cell.indexer is not None)
        compared = {one for one in map(plain, recipes) if one is not None}
        compared |= set() if tensors.index_only else {SUMMED}
        chosen = dict[Indexer, dict[int, Selection]]()
        for recipe in (*recipes, *(compared - set(recipes))):
            own = {k for cell, k in ks.items() if recipe in compared or cell.indexer == recipe}
            chosen[recipe], _ = replay.select(recipe, sorted(own))
        for cell in self.cells:
            recipe, k = cell.indexer, ks[cell]
            assert recipe is not None
            own = chosen[recipe][k]
            judged = replay.exact.judged(own, k, repr(recipe))[0]
            row = {"layer": tensors.layer, **cell.columns, "k": k, "own": _mean(judged, "recall")}
            others = {"summed": SUMMED, "fp32": plain(recipe)}
            for name, other in others.items():
                row[name] = nan
                if other in chosen:
                    its = replay.exact.overlap(own, k, chosen[other][k], repr(other))
                    row[name] = _mean(its, "recall")
            read = judged.columns["bytes_read"].double() / judged.columns["visible"]
            yield {**row, "mass": _mean(judged, "mass"), "bytes": float(read.mean())}


def plain(recipe: Indexer) -> Indexer | None:
    """The same lightning indexer with its keys in float32; None of others."""
    if type(recipe) is not lightning:
        return None
    return replace(recipe, dtype="fp32", scale="pow2", hadamard=True)


def _mean(judged: Judged, name: str) -> float:
    """The mean over heads and positions that are not trivial; over all where all are."""
    column: Tensor = judged.columns[name].double()
    trivial = judged.columns["trivial"].bool()
    kept = column if bool(trivial.all()) else column[~trivial]
    return float(kept.nanmean())
