# pyright: strict
"""Exact Top-k in one KV group of one layer, another recipe everywhere else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import pad

from topkit.errors import InputError
from topkit.indexers.base import Index, Selection, Step
from topkit.indexers.candidates import Candidates
from topkit.indexers.checks import whole
from topkit.indexers.combinator import Combinator, best_at
from topkit.indexers.exact import true_scores_of
from topkit.indexers.scored import best, cut_each
from topkit.indexers.stated_cost import Cost, Shape
from topkit.indexers.traits import Traits, as_written
from topkit.kernels.score import score
from topkit.kernels.score_keys import score_keys


@dataclass(frozen=True)
class exact_group(Combinator):
    """Mends base in one place: the query heads of one KV group of a layer keep their exact Top-k.

    What changes by it says whether these heads must be right.
    """

    layer: int = 0
    group: int = 0

    source: ClassVar[str] = "topkit"
    reads: ClassVar[frozenset[str]] = frozenset({"cache"})
    cost: ClassVar[str] = "as base, and reads every key of one group"
    examples: ClassVar[tuple[str, ...]] = (
        "exact_group(sign())",
        "exact_group(shared(quest(page_size=4), per='layer'))",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        whole(self, "layer", 0)
        whole(self, "group", 0)

    def traits(self) -> Traits:
        own = as_written(self, exact_group, "choose", "choose_many", "build")
        return replace(super().traits(), fixed=own and self.base.traits().fixed)

    def costs(self, shape: Shape) -> Cost:
        """In the layer of the group."""
        base = self.base.costs(shape)
        part = shape.T / shape.Hk
        read, operations = part * shape.key_bytes, part * shape.Hq * shape.D
        return replace(base.besides(read=read, operations=operations), lists=shape.Hq)

    def build(self, keys: Tensor, step: Step) -> Index:
        if step.layer == self.layer and self.group >= keys.shape[1]:
            raise InputError(
                f"{self}: layer {self.layer} has {keys.shape[1]} KV groups; group must lie in "
                f"0..{keys.shape[1] - 1}; got {self.group}"
            )
        return super().build(keys, step)

    def choose(self, index: Index, queries: Tensor, k: int, step: Step) -> Selection:
        return self.choose_many(index, queries, [k], step)[k]

    def choose_many(
        self, index: Index, queries: Tensor, ks: Sequence[int], step: Step
    ) -> dict[int, Selection]:
        chosen = index.select_many(queries, ks, step.given_to(self.base))
        if step.layer != self.layer:
            return chosen
        each = queries.shape[1] // step.kv_heads
        own = slice(self.group * each, (self.group + 1) * each)
        exact = self._exact(queries[:, own], own, ks, step, index.length)
        return {k: _with_heads(chosen[k], exact[k], own, queries.shape[1], step) for k in ks}

    def _exact(
        self, queries: Tensor, own: slice, ks: Sequence[int], step: Step, length: int
    ) -> dict[int, Selection]:
        """The exact Top-k of the group's queries [B, h, Tq, D], and what it costs."""
        cache, slots = step.cache, step.slots(length)
        known = None if step.memo is None else step.memo.get(true_scores_of(slots))
        if known is not None:
            scores = known[:, own]
        elif step.at is None:
            scores = score(queries, self._of_group(cache.until(length).keys))
        else:
            seen: dict[str, Any] = {"start": step.start, "stop": step.stop, "backend": step.backend}
            scores = score_keys(queries, self._of_group(cache.keys), **seen)
        cost = cache.key_bytes / step.kv_heads
        if step.at is None:
            return cut_each(best(scores, max(ks), replace(step, ordered=True), cost), ks)
        costs: dict[str, Any] = {}
        if step.counted and step.stop is not None:
            count = step.seen(slots, step.stop.shape[-1], step.stop.device)
            costs = {"keys_scored": count, "bytes_read": count * cost}
        candidates = Candidates(scores.contiguous(), **costs)
        return {k: best_at(candidates, k, step) for k in ks}

    def _of_group(self, keys: Tensor) -> Tensor:
        return keys[:, self.group : self.group + 1]


def _with_heads(
    chosen: Selection, exact: Selection, own: slice, heads: int, step: Step
) -> Selection:
    """A selection as lists of every head, of which those of `own` are the exact ones."""
    width = max(chosen.indices.shape[-1], exact.indices.shape[-1])
    lists, best = (
        pad(x, (0, width - x.shape[-1]), value=-1) for x in (chosen.indices, exact.indices)
    )
    lists = lists.repeat_interleave(heads // lists.shape[1], 1)
    slots = torch.cat([lists[:, : own.start], best, lists[:, own.stop :]], 1)
    # Of a mean list: the group's own was chosen from every key.
    part = 1 / step.kv_heads
    scored = chosen.keys_scored * (1 - part) + exact.keys_scored * part
    return replace(
        chosen,
        indices=slots,
        keys_scored=scored,
        bytes_read=chosen.bytes_read + exact.bytes_read,
    )
