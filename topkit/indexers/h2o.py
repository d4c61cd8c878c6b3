# pyright: strict
"""H2O: what was attended to most stays."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from topkit.errors import InputError
from topkit.indexers.base import Index, Indexer, Selection, Step
from topkit.indexers.budget import MOST
from topkit.indexers.checks import share
from topkit.indexers.exact import chosen_scores
from topkit.indexers.stated_cost import Cost, Shape
from topkit.indexers.traits import Traits
from topkit.indexers.votes import prompt_votes
from topkit.kernels.compact import compact
from topkit.kernels.select_topk import select_topk

# Above all votes, and a slot more than its number is still told apart from it in float64.
_NEWEST = 2.0**40


@dataclass(frozen=True)
class h2o(Indexer):
    """Keeps the newest keys and those of the largest attention so far, and evicts the others for good.

    `recent` is the newest keys' share of k. Votes begin with those of the prompt's queries that the driver
    has; a step's weights are added after it has chosen, over the keys chosen, each query head its own. A
    draft that is rejected has voted and evicted all the same, as in a cache that evicts.
    Source: arXiv 2306.14048, section 4 (algorithm 1).
    """

    recent: float = 0.5

    family: ClassVar[str] = "votes"
    source: ClassVar[str] = "arXiv 2306.14048"
    cost: ClassVar[str] = "reads the votes and the keys that it kept"
    examples: ClassVar[tuple[str, ...]] = ("h2o()", "h2o(recent=0.2)")

    def __post_init__(self) -> None:
        share(self, "recent")

    def traits(self) -> Traits:
        return Traits(
            needs=frozenset({"cache", "prefill_queries"}),
            exhaustive=False,
            may_come_short=True,
            drifts=True,
            causal_codes=False,
            remembers=True,
        )

    def costs(self, shape: Shape) -> Cost:
        s = shape
        return Cost(
            index=16 * s.Hq * s.kept / s.T,
            read=s.Hq * s.kept * (16 + s.D * s.e),
            operations=s.Hq * s.kept * s.D,
            build=s.Hq * s.T * s.T * s.D / 2,
            append=s.Hq,
            lists=s.Hq,
            kept=s.kept,
            estimated=True,
        )

    def build(self, keys: Tensor, step: Step) -> Index:
        votes = prompt_votes(step.prefill_queries, keys, step)
        slots = torch.arange(keys.shape[2], device=keys.device)
        real = slots >= step.starts(keys.device)[:, None, None]
        kept = Kept(slots.where(real, -1).expand_as(votes).contiguous(), votes)
        return H2OIndex(self, keys.shape[2], {MOST: kept}, len(votes))


@dataclass(frozen=True)
class Kept:
    """The slots that were not evicted, ascending but for -1, and their votes [B or 1, Hq, n]."""

    slots: Tensor
    votes: Tensor

    def with_new(self, slots: Tensor) -> Kept:
        """These and new slots [B or 1, 1, t], which have no vote yet."""
        rows = max(len(slots), len(self.slots))
        old, votes = (x.expand(rows, -1, -1) for x in (self.slots, self.votes))
        new = slots.expand(*old.shape[:2], -1)
        return Kept(torch.cat([old, new], -1), torch.cat([votes, torch.zeros_like(new)], -1))

    def of(self, rows: Tensor) -> Kept:
        """Row i becomes what row rows[i] was; one row stands for all."""
        return self if len(self.slots) == 1 else Kept(self.slots[rows], self.votes[rows])

    def among(self, places: Tensor) -> Kept:
        """Those at places [B, Hq, m], -1 for none."""
        at, none = places.clamp_min(0), places < 0
        slots, votes = self.slots.gather(-1, at), self.votes.gather(-1, at)
        return Kept(slots.masked_fill(none, -1), votes.masked_fill(none, 0.0))


@dataclass
class H2OIndex(Index):
    """A cache for each budget: one that is new goes on from the nearest, as a budget in per cent grows.

    Rows that begin alike are one until their queries have voted.
    """

    recipe: h2o
    length_: int
    kept: dict[int, Kept] = field(default_factory=dict[int, Kept])
    rows: int = 1

    @property
    def length(self) -> int:
        return self.length_

    @property
    def nbytes(self) -> int:
        """What each row alone would hold."""
        tensors = {id(x): x for kept in self.kept.values() for x in (kept.slots, kept.votes)}
        return sum(self.rows * x[0].numel() * x.element_size() for x in tensors.values())

    def append(self, keys: Tensor, step: Step) -> None:
        stop = self.length_ + keys.shape[2]
        slots = torch.arange(self.length_, stop, device=keys.device)
        real = slots >= step.starts(keys.device)[:, None, None]
        new = slots.where(real, -1)
        self.kept = {k: kept.with_new(new) for k, kept in self.kept.items()}
        self.length_ = stop

    def truncate(self, length: int, step: Step) -> None:
        for k, kept in self.kept.items():
            gone = kept.slots >= length
            slots, votes = kept.slots.masked_fill(gone, -1), kept.votes.masked_fill(gone, 0.0)
            self.kept[k] = Kept(slots, votes)
        self.length_ = length

    def reorder(self, rows: Tensor) -> None:
        self.kept, self.rows = {k: kept.of(rows) for k, kept in self.kept.items()}, len(rows)

    def fork(self) -> Index:
        return replace(self, kept=dict(self.kept))

    def select(self, queries: Tensor, k: int, step: Step) -> Selection:
        return self.select_many(queries, [k], step)[k]

    def select_many(self, queries: Tensor, ks: Sequence[int], step: Step) -> dict[int, Selection]:
        if queries.shape[2] != 1:
            raise InputError(f"{self.recipe} answers one query at a time; got {queries.shape[2]}")
        chosen: dict[int, Selection] = {}
        after: dict[int, Kept] = {}
        for k in ks:
            before = self.kept[min(self.kept, key=lambda other: abs(other - k))]
            chosen[k], after[k] = self._step(before, queries, min(k, self.length_), step)
        self.kept = after
        return chosen

    def _step(self, kept: Kept, queries: Tensor, k: int, step: Step) -> tuple[Selection, Kept]:
        """The keys that stay of those kept, and these with the votes of a query."""
        recent = kept.slots >= self.length_ - math.ceil(self.recipe.recent * k)
        rank = (kept.slots.double() + _NEWEST).where(recent, kept.votes)
        places = select_topk(rank.masked_fill(kept.slots < 0, -torch.inf), k, backend="torch")
        best = kept.among(places)
        # By slot again: equal votes go to the lower one.
        order = best.slots.masked_fill(best.slots < 0, MOST).argsort(-1)
        order, slots = (x.expand(len(queries), -1, -1) for x in (order, best.slots))
        best, slots = Kept(slots, best.votes.expand_as(slots)), slots[:, :, None]
        scores = chosen_scores(queries, slots, step, self.length_)
        weights = step.weights(scores).nan_to_num(0.0)[:, :, 0]
        after = Kept(best.slots, best.votes + weights).among(order)
        cost: dict[str, Any] = self._cost(kept, best, step)
        return Selection(compact(slots, k), **cost), after

    def _cost(self, kept: Kept, best: Kept, step: Step) -> dict[str, Tensor]:
        """Votes that were compared, and keys that a query of each head was weighed against."""
        scored = (best.slots >= 0).sum(-1).float()
        votes = (kept.slots >= 0).sum(-1).float() * kept.votes.element_size()
        key = step.cache.key_bytes // step.cache.heads
        read = (votes + scored * key).sum(1)
        return {"keys_scored": scored.mean(1)[:, None], "bytes_read": read[:, None]}
