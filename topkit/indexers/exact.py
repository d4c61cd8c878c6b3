# pyright: strict
"""Exact Top-k: the oracle that every other indexer is judged against."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from topkit.indexers.base import Index, Selection, Step
from topkit.indexers.candidates import Candidates
from topkit.indexers.combinator import best_at
from topkit.indexers.cost import cost_at
from topkit.indexers.scored import best, cut_each
from topkit.indexers.stated_cost import Cost, Shape
from topkit.indexers.stateless import SlotCount, Stateless
from topkit.indexers.traits import Traits, as_written
from topkit.kernels.gather_attention import gather_scores
from topkit.kernels.rounding import Rounding, norms
from topkit.kernels.score import score
from topkit.kernels.score_keys import score_keys


@dataclass(frozen=True)
class exact(Stateless):
    """Each query head keeps its k largest dot products, in float32, at the price of every key read.

    Source: arXiv 2512.03494, section "Exact Top-k Decoding".
    """

    family: ClassVar[str] = "oracle"
    source: ClassVar[str] = "arXiv 2512.03494"
    cost: ClassVar[str] = "reads every key"

    def traits(self) -> Traits:
        return Traits(
            needs=frozenset({"cache"}),
            score_all=True,
            fixed=as_written(self, exact, "choose", "build"),
        )

    def costs(self, shape: Shape) -> Cost:
        return every_key(shape)

    def build(self, keys: Tensor, step: Step) -> Index:
        return _Exact(self, keys.shape[2])

    def choose(self, queries: Tensor, k: int, step: Step, length: int) -> Selection:
        return best_true(queries, k, step, length)

    def choose_many(
        self, queries: Tensor, ks: Sequence[int], step: Step, length: int
    ) -> dict[int, Selection]:
        return cut_each(self.choose(queries, max(ks), step, length), ks)


def every_key(shape: Shape) -> Cost:
    """What it costs to read every key, and to hold no index."""
    s = shape
    operations = s.Hq * s.T * s.D
    return Cost(read=s.T * s.key_bytes, operations=operations, lists=s.Hq, kept=s.kept)


class _Exact(SlotCount):
    def candidates(self, queries: Tensor, k: int, step: Step) -> Candidates:
        scores = self.visible_scores(queries, step)
        return Candidates(scores, **cost_at(self, step))

    def visible_scores(self, queries: Tensor, step: Step) -> Tensor:
        keys = step.cache.keys
        known = None if step.memo is None else step.memo.get(true_scores_of(keys.shape[2]))
        if known is not None:
            return known.clone()
        seen: dict[str, Any] = {"start": step.start, "stop": step.stop, "backend": step.backend}
        return score_keys(queries, keys, **seen)

    def select(self, queries: Tensor, k: int, step: Step) -> Selection:
        if step.at is None:
            return super().select(queries, k, step)
        if step.memo is not None and best_of(step.slots(self.slots)) in step.memo:
            return best_true(queries, k, step, step.slots(self.slots))
        return best_at(self.candidates(queries, k, step), k, step)

    def score(self, queries: Tensor, step: Step) -> Tensor:
        return true_scores(queries, step, self.slots)

    def bytes_per_key(self, step: Step) -> float:
        return step.cache.key_bytes


def true_scores(queries: Tensor, step: Step, length: int) -> Tensor:
    """Float32 dot products [B, Hq, Tq, length] with the keys that attention reads, computed once a step."""
    cache = step.cache
    return step.once(true_scores_of(length), lambda: score(queries, cache.until(length).keys))


def best_true(queries: Tensor, k: int, step: Step, length: int) -> Selection:
    """The k best visible keys of so many by their true scores, best first, as a step's memo may know them."""
    known = None if step.memo is None else step.memo.get(best_of(length))
    if known is None or known.shape[-1] < min(k, length):
        return best(true_scores(queries, step, length), k, step, step.cache.key_bytes)
    if not step.counted:
        return Selection(known[..., :k])
    seen = step.seen(length, queries.shape[2], queries.device)
    return Selection(known[..., :k], None, None, seen, seen * step.cache.key_bytes)


def chosen_scores(
    queries: Tensor, slots: Tensor, step: Step, length: int, backend: str = "torch"
) -> Tensor:
    """The true scores [B, Hq, Tq, n] of chosen slots [B, Hs, Tq, n] of so many, -inf for -1."""
    known = None if step.memo is None else step.memo.get(true_scores_of(length))
    if known is None:
        return gather_scores(queries, step.cache.keys, slots, backend=backend)
    each = slots.repeat_interleave(known.shape[1] // slots.shape[1], 1)
    return known.gather(-1, each.clamp_min(0)).masked_fill(each < 0, -torch.inf)


def key_rounding(queries: Tensor, step: Step, length: int) -> Rounding:
    """What the true scores of so many keys may be off by; the keys' norms are computed once a step."""
    cache = step.cache
    of_keys = step.once(norms_of(length), lambda: norms(cache.until(length).keys))
    return Rounding.of_norms(queries, of_keys)


def best_of(length: int) -> str:
    """What a step's memo calls the best of so many keys by their true scores, best first, -1 last."""
    return f"best of {length} keys"


def norms_of(length: int) -> str:
    """What a step's memo calls the norms [B, Hk, length] of so many keys."""
    return f"norms of {length} keys"


def true_scores_of(length: int) -> str:
    """What a step's memo calls the true scores of so many keys."""
    return f"true scores of {length} keys"
