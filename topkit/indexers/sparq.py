# pyright: strict
"""SparQ: the channels in which a query is largest, and the mean value for what was not chosen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from topkit.errors import InputError
from topkit.indexers.base import Index, Rest, Selection, Step
from topkit.indexers.channels import Channels
from topkit.indexers.checks import flag, whole
from topkit.indexers.mean_value import mean_of, sum_of
from topkit.indexers.scored import Codes, ScoredIndex, masked, pooled, waiting
from topkit.indexers.stated_cost import Cost, Shape
from topkit.indexers.traits import Traits
from topkit.kernels.select_topk import select_topk


@dataclass(frozen=True)
class sparq(Channels):
    """Scores over the channels in which the query is largest, and lets the mean value stand for the rest.

    Scores are those of the paper at its temperature, sqrt(D |q~|_1 / |q|_1); the keys not chosen have the
    share of the output that the softmax of these scores gives them. The newest `window` keys are always
    chosen. Keys are held a second time, channel by channel. Each query head chooses for itself, where the
    paper's code sums |q| and scores over a group; mean_value=False leaves the share out, and is what
    combinators take. Ties of |q| go to the lower channel. Source: arXiv 2312.04985, algorithm 1.
    """

    mean_value: bool = True
    window: int = 0

    source: ClassVar[str] = "arXiv 2312.04985"
    cost: ClassVar[str] = "reads 1/4 of the numbers of each key, a query head; holds the keys twice"
    examples: ClassVar[tuple[str, ...]] = (
        "sparq()",
        "sparq(channels=3, window=4)",
        "sparq(mean_value=False)",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        flag(self, "mean_value")
        whole(self, "window", 0)

    def traits(self) -> Traits:
        needs = frozenset({"cache"}) if self.mean_value else frozenset[str]()
        return Traits(needs=needs, score_all=self.window == 0, rest=self.mean_value)

    def code_bytes(self, shape: Shape) -> float:
        return shape.key_bytes

    def costs(self, shape: Shape) -> Cost:
        s, count = shape, self.count(shape.D)
        total = 8 * s.Hk * s.Dv if self.mean_value else 0
        return replace(
            super().costs(shape),
            index=s.key_bytes + total / s.T,
            read=s.Hq * count * s.e * s.T + total,
            operations=s.Hq * s.T * count,
        )

    def build(self, keys: Tensor, step: Step) -> Index:
        self.count(keys.shape[3])
        index = SparqIndex(self)
        index.append(keys, step)
        return index

    def encode(self, keys: Tensor, step: Step) -> Codes:
        # A "head" for each channel, whose numbers then stand side by side.
        return {"columns": keys.detach().transpose(2, 3).flatten(1, 2)[..., None].contiguous()}

    def score(self, queries: Tensor, codes: Codes, step: Step) -> Tensor:
        queries = queries.float()
        rows, heads, count, width = queries.shape
        largest, at = queries.abs().sort(dim=-1, descending=True, stable=True)
        at = at[..., : self.count(width)]
        part = largest[..., : at.shape[-1]].sum(-1, keepdim=True)
        whole = largest.sum(-1, keepdim=True)
        kept = queries.gather(-1, at) * (whole / part).sqrt().where(part > 0, 1)
        columns = codes["columns"][..., 0]
        group = heads // (columns.shape[1] // width)
        first = torch.arange(heads, device=at.device) // group * width
        at = at + first[:, None, None]
        scores = queries.new_empty(rows, heads, count, columns.shape[2])
        for row in range(rows):
            keys = columns[row % len(columns)]
            for query in range(count):
                read = keys[at[row, :, query]]
                torch.bmm(kept[row, :, query, None], read.float(), out=scores[row, :, query, None])
        return scores


@dataclass
class SparqIndex(ScoredIndex):
    """Keys by channel, and the sum of the values [B, Hk, Dv] of all real slots."""

    total: Tensor | None = None
    # The query heads of the last call: each reads channels of its own.
    heads: int = field(default=0, compare=False)

    @property
    def nbytes(self) -> int:
        return super().nbytes + (0 if self.total is None else self.total.untyped_storage().nbytes())

    def append(self, keys: Tensor, step: Step) -> None:
        before = self.slots
        super().append(keys, step)
        if self._recipe.mean_value:
            more = sum_of(step, before, self.slots)
            self.total = more if self.total is None else self.total + more

    def truncate(self, length: int, step: Step) -> None:
        super().truncate(length, step)
        if self.total is not None:
            self.total = sum_of(step, 0, length)

    def reorder(self, rows: Tensor) -> None:
        super().reorder(rows)
        self.total = None if self.total is None else self.total[rows]

    def bytes_per_key(self, step: Step) -> float:
        columns = self.earliest["columns"]
        heads = columns.shape[1] // self._width(step)
        each = self._recipe.count(self._width(step)) * columns.element_size()
        return each * max(self.heads, heads)

    def score(self, queries: Tensor, step: Step) -> Tensor:
        if self._recipe.window:
            raise InputError(
                f"{self._recipe} chooses its window by no score; window=0 scores every key"
            )
        return super().score(queries, step)

    def select_many(self, queries: Tensor, ks: Sequence[int], step: Step) -> dict[int, Selection]:
        return self._selected(queries, ks, step)

    def chosen(self, queries: Tensor, k: int, step: Step, pool: str | None = None) -> Selection:
        return self._selected(queries, [k], step, pool)[k]

    def _selected(
        self, queries: Tensor, ks: Sequence[int], step: Step, pool: str | None = None
    ) -> dict[int, Selection]:
        """The selections at several budgets, of scores computed once."""
        self.heads = queries.shape[1]
        scores = masked(super().score(queries, step), step)
        lists = self._windowed(pooled(scores, step.kv_heads, pool), step)
        longest = select_topk(lists, max(ks), **waiting(step))
        seen = step.seen(self.slots, queries.shape[2], queries.device)
        total = 0 if self.total is None else self.total[0].numel() * self.total.element_size()
        read = seen * self.bytes_per_key(step) + total
        cost: dict[str, Any] = {"keys_scored": seen, "bytes_read": read}
        if not self._recipe.mean_value:
            return {k: Selection(longest[..., :k], **cost) for k in ks}
        assert self.total is not None
        values = mean_of(self.total, queries, self.slots, step)
        held = _held(scores, longest, step)
        chosen: dict[int, Selection] = {}
        for k in ks:
            share = (1 - held[..., min(k, held.shape[-1]) - 1, None]).clamp(0, 1)
            chosen[k] = Selection(longest[..., :k], rest=Rest(values, share=share), **cost)
        return chosen

    def _windowed(self, scores: Tensor, step: Step) -> Tensor:
        """Scores [B, Hs, Tq, T], inf of the newest keys that a query sees."""
        if self._recipe.window == 0:
            return scores
        stop = step.stops(self.slots, scores.shape[2], scores.device)[:, None, :, None]
        newest = torch.arange(scores.shape[-1], device=scores.device) >= stop - self._recipe.window
        return scores.masked_fill(newest & (scores > -torch.inf), torch.inf)

    def _width(self, step: Step) -> int:
        return self.earliest["columns"].shape[1] // step.kv_heads

    @property
    def _recipe(self) -> sparq:
        assert isinstance(self.recipe, sparq)
        return self.recipe


def _held(scores: Tensor, slots: Tensor, step: Step) -> Tensor:
    """What a sink and the first 1, 2, ... of their lists take of the softmax of scores [B, Hq, Tq, T], added up."""
    slots = slots.repeat_interleave(scores.shape[1] // slots.shape[1], 1)
    weights = step.weights(scores)
    shares = weights.gather(-1, slots.clamp_min(0))
    held = shares.masked_fill(slots < 0, 0).cumsum(-1)
    if step.softmax.sinks is not None:
        held = held + (1 - weights.sum(-1, keepdim=True))
    # A row of padding alone has nothing to share out.
    return held.where(scores.amax(-1, keepdim=True) > -torch.inf, 1)
