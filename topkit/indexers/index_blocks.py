# pyright: strict
"""Blocks of lightning's index keys, and the keys of the best blocks by lightning's own scores."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from topkit.indexers.base import Index, Step
from topkit.indexers.lightning import lightning
from topkit.indexers.scored import ScoredIndex
from topkit.indexers.two_stage import TwoStageIndex
from topkit.kernels.score import score_lightning


@dataclass
class IndexBlocks(TwoStageIndex):
    """Summaries of blocks of index keys as they are stored, which `own` holds: one list for all heads."""

    own: ScoredIndex = field(kw_only=True)

    @property
    def scorer(self) -> lightning:
        assert isinstance(self.own.recipe, lightning)
        return self.own.recipe

    @property
    def nbytes(self) -> int:
        return super().nbytes + self.own.nbytes

    def append(self, keys: Tensor, step: Step) -> None:
        self.own.append(keys, step)
        self._append(self._keys(self.slots), step, 0)

    def truncate(self, length: int, step: Step) -> None:
        self.own.truncate(length, step)
        super().truncate(length, step)

    def keys_from(self, first: int, length: int, step: Step) -> Tensor:
        return self._keys(first)

    def _keys(self, first: int) -> Tensor:
        return self.scorer.vectors_of(self.own.since(first))

    def reorder(self, rows: Tensor) -> None:
        super().reorder(rows)
        self.own.reorder(rows)

    def fork(self) -> Index:
        twin, own = super().fork(), self.own.fork()
        assert isinstance(twin, IndexBlocks) and isinstance(own, ScoredIndex)
        return replace(twin, own=own)

    def scores_of(self, queries: Tensor, slots: Tensor, step: Step) -> Tensor:
        vectors, gates = self.scorer.asked(queries, step)
        rows, _, count, width = slots.shape
        at = slots.clamp_min(0).flatten(1)
        codes = self.own.of_slots(at[:, None])
        keys = self.scorer.vectors_of(codes).view(rows * count, 1, width, -1)
        each = vectors.movedim(2, 1).reshape(rows * count, vectors.shape[1], 1, -1)
        own = gates.reshape(rows * count, 1, -1)
        scores = score_lightning(each, keys, own, backend="torch").view(rows, 1, count, width)
        return scores.masked_fill(slots < 0, -torch.inf)

    def slot_bytes(self, queries: Tensor, lists: int, step: Step) -> float:
        return self.own.bytes_per_key(step)
