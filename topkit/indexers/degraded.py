# pyright: strict
"""The controlled-precision oracle: exact Top-k with a known share of its keys lost."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from topkit.indexers.base import Selection, Step
from topkit.indexers.checks import choice, share
from topkit.indexers.compact import compact
from topkit.indexers.exact import key_rounding, true_scores
from topkit.indexers.noise import noise
from topkit.indexers.scored import best, cut_each, masked
from topkit.indexers.stateless import Stateless
from topkit.indexers.traits import Traits
from topkit.kernels.select_topk import select_topk

_PAGE = 16
_KEYS, _PAGES, _TOSS, _FILL = 1, 2, 3, 4  # salts


@dataclass(frozen=True)
class _Spares:
    """The keys that may replace lost ones.

    Shapes: most [B, H, Tq, T], what a score may be without its rounding; floors [B, H, Tq, n], what the m
    best are sure to reach; order [B or 1, H, Tq, T], greatest first.
    """

    most: Tensor
    floors: Tensor
    order: Tensor


@dataclass(frozen=True)
class degraded(Stateless):
    """Exact Top-k that loses 1 - precision of its keys, on average, in a manner of your choice.

    miss: which keys are lost: uniform, boundary (lowest scores first), heavy (highest first), recent
    (newest first), page (runs of 16 slots together). fill: what takes their places, always below the
    k-th score: uniform, next (best first), recent, none. persist and per: how far one loss reaches:
    a key lost at random is lost at this step or for the whole stream, in one head or in all heads of
    its group or layer. A loss that reaches no further takes floor(x) or ceil(x) keys of k, x =
    (1 - precision) k; one that does takes each key with its own fixed probability.
    Source: arXiv 2512.03494, controlled-precision study; the paper leaves fill and persistence open.
    """

    precision: float
    miss: str = "uniform"
    fill: str = "uniform"
    persist: str = "step"
    per: str = "head"

    family: ClassVar[str] = "oracle"
    source: ClassVar[str] = "arXiv 2512.03494"
    cost: ClassVar[str] = "reads every key"
    examples: ClassVar[tuple[str, ...]] = (
        "degraded(0.6)",
        "degraded(0.5, miss='boundary', fill='next')",
        "degraded(0.7, miss='heavy', fill='recent', persist='stream')",
        "degraded(0.3, miss='page', fill='none', per='group')",
        "degraded(0.4, miss='recent', fill='next', per='layer')",
        "degraded(0.6, persist='stream', per='layer')",
    )

    def __post_init__(self) -> None:
        share(self, "precision")
        choice(self, "miss", ("uniform", "boundary", "heavy", "recent", "page"))
        choice(self, "fill", ("uniform", "next", "recent", "none"))
        choice(self, "persist", ("step", "stream"))
        choice(self, "per", ("head", "group", "layer"))

    def traits(self) -> Traits:
        return Traits(needs=frozenset({"cache"}), may_come_short=True)

    def choose(self, queries: Tensor, k: int, step: Step, length: int) -> Selection:
        return self.choose_many(queries, [k], step, length)[k]

    def choose_many(
        self, queries: Tensor, ks: Sequence[int], step: Step, length: int
    ) -> dict[int, Selection]:
        scores = masked(true_scores(queries, step, length), step)
        # One more than is kept: whose score is known badly takes one place, and moves no other.
        exact = cut_each(best(scores, max(ks) + 1, step, step.cache.key_bytes), [*ks, max(ks) + 1])
        widest = exact[max(ks) + 1].indices
        spares = None if self.fill == "none" else self._spares(queries, scores, widest, step)
        return {k: self._degraded(exact[k], k, spares, step, length) for k in ks}

    def _degraded(
        self, exact: Selection, k: int, spares: _Spares | None, step: Step, length: int
    ) -> Selection:
        """The exact selection, with some of its keys lost and others in their places."""
        slots = exact.indices
        width = slots.shape[-1]
        if width == length:
            return exact
        # A row that shows no more than k keys keeps them all.
        spare = step.seen(length, slots.shape[2], slots.device)[:, None, :, None] > k
        lost = self._lost(slots, step, length) & spare
        kept = slots.masked_fill(lost, -1)
        if spares is None:
            return replace(exact, indices=compact(kept, width))
        fillers = self._fillers(slots, spares)
        place = torch.arange(fillers.shape[-1], device=slots.device)
        fillers = fillers.masked_fill(place >= lost.sum(-1, keepdim=True), -1)
        return replace(exact, indices=compact(torch.cat([kept, fillers], -1), width))

    @property
    def _reaches_further(self) -> bool:
        at_random = self.miss in ("uniform", "page")
        return at_random and (self.persist == "stream" or self.per != "head")

    def _share(self, k: int) -> float:
        return round((1 - self.precision) * k, 9)

    def _lost(self, slots: Tensor, step: Step, length: int) -> Tensor:
        """Which of the exact slots [B, H, Tq, k], best first, are lost."""
        if self._reaches_further:
            together = _PAGE if self.miss == "page" else 1
            return self._noise(slots, step, length, _KEYS, together) < 1 - self.precision
        rank = torch.arange(slots.shape[-1], device=slots.device).expand_as(slots)
        order = self._worst_first(slots, rank, step, length).sort(-1, descending=True).indices
        lost_rank = torch.empty_like(order).scatter_(-1, order, rank)
        share = self._share(slots.shape[-1])
        first = step.starts(slots.device)[:, None, None, None]
        toss = noise(step, length, slots, slots=first, salt=_TOSS)
        return lost_rank < math.floor(share) + (toss < share % 1).int()

    def _worst_first(self, slots: Tensor, rank: Tensor, step: Step, length: int) -> Tensor:
        """Numbers [B, H, Tq, k], greatest where a key is lost first."""
        if self.miss == "boundary":
            return rank
        if self.miss == "heavy":
            return -rank
        if self.miss == "recent":
            return slots
        draws = self._noise(slots, step, length, _KEYS)
        if self.miss == "page":
            return self._noise(slots, step, length, _PAGES, _PAGE).double() + draws.double() / 2**24
        return draws

    def _spares(self, queries: Tensor, scores: Tensor, widest: Tensor, step: Step) -> _Spares:
        rounding = key_rounding(queries, step, scores.shape[-1])
        least = scores.gather(-1, widest.clamp_min(0)) - rounding.at(widest)
        floors = least.masked_fill(widest < 0, -torch.inf).sort(-1, descending=True).values
        most = scores + rounding.whole()
        if self.fill == "next":
            return _Spares(most, floors, scores)
        place = torch.arange(scores.shape[-1], device=scores.device).expand(1, *scores.shape[1:])
        if self.fill == "recent":
            return _Spares(most, floors, place.float())
        return _Spares(most, floors, self._noise(place, step, scores.shape[-1], _FILL))

    def _fillers(self, slots: Tensor, spares: _Spares) -> Tensor:
        """Slots [B, H, Tq, n] that may take the places of what is lost, the first to be used first.

        None that a judge would count among the best: see topkit.fidelity.ties.
        """
        width = slots.shape[-1]
        floor = spares.floors[..., width - 1, None]
        may = (spares.most > -float("inf")) & (spares.most < floor)
        most = width if self._reaches_further else min(math.floor(self._share(width)) + 1, width)
        return select_topk(spares.order.where(may, -torch.inf), most)

    def _noise(
        self, slots: Tensor, step: Step, length: int, salt: int, slots_together: int = 1
    ) -> Tensor:
        """Numbers that decide for slots [B or 1, H, Tq, n], as far as persist and per reach."""
        heads = slots.shape[1]
        reach = {"head": 1, "group": max(heads // step.kv_heads, 1), "layer": heads}
        return noise(
            step,
            length,
            slots,
            slots=slots,
            salt=salt,
            per_query=self.persist == "step",
            heads_together=reach[self.per],
            slots_together=slots_together,
        )
