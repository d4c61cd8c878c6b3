"""The family "score every key cheaply, keep the best k"."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from topkit.indexers.base import Index, Indexer, Selection, Step
from topkit.kernels.select_topk import select_topk

Codes = dict[str, Tensor]


class Scored(Indexer):
    """A recipe that writes how keys are encoded and how codes are scored, and nothing else."""

    score_all: ClassVar[bool] = True

    def encode(self, keys: Tensor, step: Step) -> Codes:
        """Codes of keys [B, Hk, t, D]: named tensors [B, Hc, t, ...]."""
        raise NotImplementedError(f"{type(self).__name__}.encode")

    def score(self, queries: Tensor, codes: Codes, step: Step) -> Tensor:
        """Scores [B, Hs, Tq, T] of all codes for queries [B, Hq, Tq, D]."""
        raise NotImplementedError(f"{type(self).__name__}.score")

    def build(self, keys: Tensor, step: Step) -> Index:
        index = ScoredIndex(self)
        index.append(keys, step)
        return index


def best(scores: Tensor, k: int, step: Step, bytes_per_key: float) -> Selection:
    """The k best visible keys of scores [B, Hs, Tq, T], with the cost of having scored all."""
    seen = step.seen(scores.shape[-1], scores.shape[-2], scores.device)
    slots = select_topk(masked(scores, step), k)
    return Selection(slots, keys_scored=seen, bytes_read=seen * bytes_per_key)


def masked(scores: Tensor, step: Step) -> Tensor:
    """Scores [B, Hs, Tq, T], -inf where a query does not see the slot."""
    visible = step.visible(scores.shape[-1], scores.shape[-2], scores.device)
    return scores if visible is None else scores.masked_fill(~visible, float("-inf"))


@dataclass
class ScoredIndex(Index):
    """Codes of every key, concatenated along the slots; never written in place."""

    recipe: Scored
    codes: Codes = field(default_factory=dict)
    slots: int = 0

    @property
    def length(self) -> int:
        return self.slots

    @property
    def nbytes(self) -> int:
        return sum(code.numel() * code.element_size() for code in self.codes.values())

    def append(self, keys: Tensor, step: Step) -> None:
        new = self.recipe.encode(keys, step)
        self.codes = (
            {n: torch.cat([self.codes[n], c], 2) for n, c in new.items()} if self.codes else new
        )
        self.slots += keys.shape[2]

    def truncate(self, length: int, step: Step) -> None:
        self.codes = {name: code[:, :, :length].clone() for name, code in self.codes.items()}
        self.slots = length

    def reorder(self, rows: Tensor) -> None:
        self.codes = {name: code[rows] for name, code in self.codes.items()}

    def score(self, queries: Tensor, step: Step) -> Tensor:
        return self.recipe.score(queries, self.codes, step)

    def select(self, queries: Tensor, k: int, step: Step) -> Selection:
        return best(self.score(queries, step), k, step, self.bytes_per_key(step))

    def bytes_per_key(self, step: Step) -> float:
        return sum(code[0, :, 0].numel() * code.element_size() for code in self.codes.values())
