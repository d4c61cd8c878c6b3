# pyright: strict
"""The controlled-precision oracle: exact Top-k with a known share of its keys lost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from topkit.indexers.base import Selection, Step
from topkit.indexers.checks import choice, share
from topkit.indexers.exact import (
    best_true,
    every_key,
    key_rounding,
    true_scores,
    true_scores_of,
)
from topkit.indexers.noise import noise, salt_of
from topkit.indexers.scored import cut_each, masked
from topkit.indexers.stated_cost import Cost, Shape
from topkit.indexers.stateless import Stateless
from topkit.indexers.traits import Traits, as_written
from topkit.kernels.degrade import Loss, degrade
from topkit.kernels.rounding import Rounding

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
        own = as_written(self, degraded, "choose", "choose_many")
        return Traits(needs=frozenset({"cache"}), may_come_short=True, fixed=own)

    def costs(self, shape: Shape) -> Cost:
        return every_key(shape)

    def choose(self, queries: Tensor, k: int, step: Step, length: int) -> Selection:
        return self.choose_many(queries, [k], step, length)[k]

    def choose_many(
        self, queries: Tensor, ks: Sequence[int], step: Step, length: int
    ) -> dict[int, Selection]:
        # At a step of fixed shapes those that are known are -inf where a slot is not seen.
        known = step.at is not None and true_scores_of(length) in (step.memo or {})
        scores = true_scores(queries, step, length)
        scores = scores if known else masked(scores, step)
        # One more than is kept: whose score is known badly takes one place, and moves no other.
        exact = cut_each(best_true(queries, max(ks) + 1, step, length), [*ks, max(ks) + 1])
        widest = exact[max(ks) + 1].indices
        spares = None if self.fill == "none" else self._spares(queries, scores, widest, step)
        return {k: self._degraded(exact[k], spares, step, length) for k in ks}

    def _degraded(
        self, exact: Selection, spares: _Spares | None, step: Step, length: int
    ) -> Selection:
        """The exact selection, with some of its keys lost and others in their places."""
        slots = exact.indices
        if slots.shape[-1] == length:
            return exact
        heads, device = slots.shape[1], slots.device
        chance = 1 - self.precision
        at_random = self.miss in ("uniform", "page")
        loss = Loss(
            share=round(chance * slots.shape[-1], 9),
            chance=chance,
            miss=self.miss,
            further=at_random and (self.persist == "stream" or self.per != "head"),
            per_query=self.persist == "step",
            heads_together=self._heads_together(heads, step),
            page=_PAGE,
            seed=step.seed,
            keys=salt_of(step, _KEYS),
            pages=salt_of(step, _PAGES),
            toss=salt_of(step, _TOSS),
        )
        chosen = degrade(
            slots,
            None if spares is None else spares.order,
            None if spares is None else spares.most,
            None if spares is None else spares.floors[..., slots.shape[-1] - 1, None],
            loss=loss,
            stop=step.stops(length, slots.shape[2], device).clamp_max(length),
            start=step.start,
            backend=step.backend,
        )
        return replace(exact, indices=chosen)

    def _spares(self, queries: Tensor, scores: Tensor, widest: Tensor, step: Step) -> _Spares:
        length = scores.shape[-1]

        def bounds() -> Tensor:
            return most_of(scores, key_rounding(queries, step, length))

        def floors() -> Tensor:
            return floors_of(scores, widest, key_rounding(queries, step, length))

        most = step.once(most_named(length), bounds)
        low = step.once(floors_named(length, widest.shape[-1]), floors)
        if self.fill == "next":
            return _Spares(most, low, scores)
        if self.fill == "recent":
            place = torch.arange(length, device=scores.device, dtype=torch.float32)
            return _Spares(most, low, place.expand(1, *scores.shape[1:]))
        draws = noise(
            step,
            length,
            scores,
            salt=_FILL,
            per_query=self.persist == "step",
            heads_together=self._heads_together(scores.shape[1], step),
        )
        return _Spares(most, low, draws)

    def _heads_together(self, heads: int, step: Step) -> int:
        reach = {"head": 1, "group": max(heads // step.kv_heads, 1), "layer": heads}
        return reach[self.per]


def most_of(scores: Tensor, rounding: Rounding) -> Tensor:
    """What scores [B, H, Tq, T] may be without their rounding."""
    return scores + rounding.whole()


def floors_of(scores: Tensor, widest: Tensor, rounding: Rounding) -> Tensor:
    """What the best of the slots [B, H, Tq, n], and the two best and so on, are sure to reach."""
    least = scores.gather(-1, widest.clamp_min(0)) - rounding.at(widest)
    return least.masked_fill(widest < 0, -torch.inf).sort(-1, descending=True).values


def most_named(length: int) -> str:
    """What a step's memo calls `most_of` so many keys."""
    return f"most of {length} scores"


def floors_named(length: int, count: int) -> str:
    """What a step's memo calls `floors_of` the best `count` of so many keys."""
    return f"floors of the best {count} of {length}"
