# pyright: strict
"""MISA: a router asks a few heads of the lightning indexer alone."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import pad

from topkit.indexers.base import Index, Selection, Step
from topkit.indexers.checks import whole
from topkit.indexers.lightning import GIVEN, lightning
from topkit.indexers.lightning_weights import load
from topkit.indexers.scored import Codes, Scored, ScoredIndex, masked
from topkit.indexers.stated_cost import Cost, Shape, least
from topkit.indexers.traits import Traits
from topkit.kernels.score import score_lightning
from topkit.kernels.select_topk import select_topk


@dataclass(frozen=True)
class misa(lightning):
    """Scores a key as lightning does, by those `heads` of its heads alone that a router names for a query.

    A head's use is the mean of |gate ReLU(q . k)| over the mean keys of blocks of `block`, of which the last is
    of what the query sees. `candidates` of these scores are scored again by all heads, and no others are kept;
    0: the first scores decide. Weights and dtype are lightning's. Source: arXiv 2605.07363, section 3.
    """

    heads: int = 8
    block: int = 1024
    candidates: int = 0

    source: ClassVar[str] = "arXiv 2605.07363"
    cost: ClassVar[str] = "reads one small key a token and block, and of candidates once more"
    examples: ClassVar[tuple[str, ...]] = (
        "misa()",
        "misa(heads=2, block=8)",
        "misa(weights='given', dtype='fp8', heads=1, block=4, candidates=8)",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        whole(self, "heads", 1)
        whole(self, "block", 1)
        whole(self, "candidates", 0)

    def traits(self) -> Traits:
        few = self.candidates > 0
        return replace(super().traits(), fixed=False, exhaustive=not few, may_come_short=few)

    def costs(self, shape: Shape) -> Cost:
        s, blocks = shape, math.ceil(shape.T / self.block)
        again = least(self.candidates, s.T)
        cost = super().costs(s)
        operations = cost.operations
        if self.weights != GIVEN:
            w = load(self.weights)
            asked = least(self.heads, w.heads)
            operations += w.width * (asked * s.T + w.heads * (blocks + again - s.T))
        read = self.code_bytes(s) * (s.T + blocks + again)
        return replace(cost, read=read, operations=operations, estimated=True)

    def build(self, keys: Tensor, step: Step) -> Index:
        index = Routed(self)
        index.append(keys, step)
        return index

    def score(self, queries: Tensor, codes: Codes, step: Step) -> Tensor:
        (vectors, gates), keys = self.asked(queries, step), self.vectors_of(codes)
        few, all_heads = min(self.heads, vectors.shape[1]), vectors.shape[1]
        used = select_topk(self._use(vectors, gates, keys, step), few, backend="torch")
        own = vectors.movedim(2, 1).gather(2, used[..., None].expand(-1, -1, -1, keys.shape[3]))
        # Scores are scaled by the number of heads, of which there are fewer here.
        mine = gates.gather(2, used) * (few / all_heads) ** 0.5
        scores = score_lightning(own.movedim(1, 2), keys, mine, backend="torch")
        if not self.candidates:
            return scores
        return _again(scores, self.candidates, vectors, gates, keys, step)

    def pick(
        self, queries: Tensor, codes: Codes, k: int, step: Step, pool: str | None = None
    ) -> Tensor:
        return Scored.pick(self, queries, codes, k, step, pool)

    def _use(self, vectors: Tensor, gates: Tensor, keys: Tensor, step: Step) -> Tensor:
        """What each head is worth to each query [B, Tq, H]."""
        means, there = _block_means(keys, self.block, vectors.shape[2], step)
        hits = torch.relu(torch.einsum("bhqd,bqpd->bqhp", vectors, means))
        hits = (hits * gates[..., None]).abs() * there[:, :, None]
        return hits.sum(-1) / there.sum(-1, keepdim=True).clamp_min(1)


class Routed(ScoredIndex):
    """Index keys, of which no part alone could tell which heads are asked."""

    def of_codes(self, make: Callable[[Codes], Tensor]) -> Tensor:
        return make(self.whole())

    def chosen(self, queries: Tensor, k: int, step: Step, pool: str | None = None) -> Selection:
        recipe = self.recipe
        assert isinstance(recipe, misa)
        chosen = super().chosen(queries, k, step, pool)
        seen = torch.as_tensor(chosen.keys_scored)
        # Means are made of keys that are read anyway; kept, they would be read as keys are.
        more = -(-seen // recipe.block) + seen.clamp_max(recipe.candidates)
        read = chosen.bytes_read + more * self.bytes_per_key(step)
        return replace(
            chosen, keys_scored=seen + seen.clamp_max(recipe.candidates), bytes_read=read
        )


def _again(
    scores: Tensor, count: int, vectors: Tensor, gates: Tensor, keys: Tensor, step: Step
) -> Tensor:
    """The scores of all heads for the best of some [B, 1, Tq, T], -inf for the others."""
    slots = select_topk(masked(scores, step), count, backend="torch")
    rows, _, asked, width = slots.shape
    at = slots.clamp_min(0).flatten(1)[..., None].expand(-1, -1, keys.shape[3])
    own = keys[:, 0].gather(1, at).view(rows * asked, 1, width, -1)
    each = vectors.movedim(2, 1).reshape(rows * asked, vectors.shape[1], 1, -1)
    full = score_lightning(each, own, gates.reshape(rows * asked, 1, -1), backend="torch")
    # Behind the last slot stands what is none.
    places = slots.where(slots >= 0, scores.shape[3])
    room = scores.new_full((*scores.shape[:3], scores.shape[3] + 1), -torch.inf)
    return room.scatter(-1, places, full.view(rows, 1, asked, width))[..., :-1]


def _block_means(keys: Tensor, size: int, count: int, step: Step) -> tuple[Tensor, Tensor]:
    """The mean of what each query sees of each block [B, Tq, P, d], and whether it sees any [B, Tq, P].

    Blocks count from a row's first real key.
    """
    rows, _, length, width = keys.shape
    size = min(size, length)
    start, stop = step.starts(keys.device), step.stops(length, count, keys.device)
    first = torch.arange(0, length, size, device=keys.device)
    blocks = _in_blocks(keys[:, 0], len(first) * size, step).view(rows, -1, size, width)
    seen = (stop - start[:, None])[..., None] - first
    seen = seen.clamp(0, size).expand(rows, count, -1)
    if count == 1:  # what lies behind the query is left out of the only block that is cut
        there = torch.arange(size, device=keys.device) < seen[:, 0, :, None]
        sums = there[:, :, None].to(blocks.dtype) @ blocks
    else:
        last = (seen.mT - 1).clamp_min(0)[..., None].expand(-1, -1, -1, width)
        sums = blocks.cumsum(2).gather(2, last)
    means = sums / seen.mT[..., None].clamp_min(1)
    return means.movedim(2, 1), seen > 0


def _in_blocks(keys: Tensor, count: int, step: Step) -> Tensor:
    """The first `count` keys [B, count, d] from each row's first real one on, zeros behind the last of [B, T, d]."""
    length, width = keys.shape[1:]
    if step.start is None:
        return pad(keys, (0, 0, 0, count - length)) if count > length else keys
    at = step.starts(keys.device)[:, None] + torch.arange(count, device=keys.device)
    inside = (at < length)[..., None]
    own = keys.gather(
        1, at.clamp_max(length - 1).expand(len(keys), -1)[..., None].expand(-1, -1, width)
    )
    return own.masked_fill(~inside, 0)
