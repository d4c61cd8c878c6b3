"""The exact lists of a cache, and the fidelity of a step's selection to them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from topkit.fidelity import Truth, UnitTruth, judge, judge_units, truth, unit_truth
from topkit.indexers.base import Selection

METRICS = ("recall", "mass", "mass_ratio")
# Bytes of one chunk of exact scores: larger ones are fewer launches.
MEMORY = 1 << 32


@dataclass(frozen=True)
class Best:
    """The exact rows of a cache, and the best lists of its heads, KV groups and whole layers."""

    exact: Truth
    units: dict[int, UnitTruth]

    @classmethod
    def of(cls, queries: Tensor, keys: Tensor, k: int, scaling: float) -> Best:
        exact = truth(queries, keys, None, k, scaling=scaling, memory=MEMORY)
        counts = {queries.shape[1], keys.shape[1], 1}
        return cls(
            exact, {n: unit_truth(exact, queries, keys, k, n, memory=MEMORY) for n in counts}
        )

    def fidelity(self, queries: Tensor, keys: Tensor, slots: Tensor, k: int) -> dict[str, float]:
        """Means over rows and query heads, of slots [B, Hs, 1, k].

        Against each head's own Top-k; `shared_mass_ratio` against the best list for the heads that
        share one.
        """
        if (slots.sort(-1).values.diff(dim=-1) == 0).any():
            raise RuntimeError("the selection holds a slot twice")
        chosen = Selection(slots)
        columns = judge(self.exact, queries, keys, None, chosen, k)
        means = {name: _mean(columns[name]) for name in METRICS}
        columns = judge_units(self.exact, self.units[slots.shape[1]], queries, keys, chosen, k)
        return {**means, "shared_mass_ratio": _mean(columns["mass_ratio"])}


def _mean(column: Tensor) -> float:
    return torch.nanmean(column.float()).item()
