"""The selections of all recipes, stacked: what they chose is attended to and judged at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from topkit.errors import InputError
from topkit.experiments.evaluate.shared_cache import LONG, SharedCache
from topkit.fidelity.validity import require_valid
from topkit.indexers.base import Indexer, Rest, Selection
from topkit.kernels.gather_attention import PLAIN, Softmax, attend


@dataclass(frozen=True)
class Chosen:
    """What a recipe selected at one k: for some rows of a batch, `own` among its own, and some queries."""

    indexer: Indexer
    rows: slice
    own: slice
    place: slice
    k: int
    selection: Selection

    @property
    def lists(self) -> int:
        return self.selection.indices.shape[1]


@dataclass(frozen=True)
class Lists:
    """Selections of like width, stacked: of some rows of a batch, and some of the queries.

    numbers, budgets, units and weighted have an entry for each row: its number in the batch, how many keys
    it keeps, how many lists its heads share, and whether these are weighted. Shapes: selection.indices [B, Hq, n, w], a list of its own for
    every query head; its costs [B, n]; ks [B], the budgets.
    """

    numbers: Sequence[int]
    place: slice
    selection: Selection
    budgets: Sequence[int]
    units: Sequence[int]
    weighted: Sequence[bool]

    @cached_property
    def rows(self) -> Tensor | slice:
        """The numbers as an index."""
        return as_index(self.numbers, self.selection.indices.device)

    @cached_property
    def ks(self) -> Tensor:
        return torch.tensor(self.budgets, device=self.selection.indices.device)

    def attend(
        self, scores: Tensor, cache: SharedCache, scaling: float, softmax: Softmax = PLAIN
    ) -> Tensor:
        """Attention's output [B, Hq, n, Dv] in float32, of the rows' scores [B, Hq, n, T]."""
        slots, rest = self.selection.indices, self.selection.rest
        chosen = scores.gather(-1, slots.clamp_min(0)).masked_fill(slots < 0, -torch.inf)
        return attend(
            chosen,
            cache.weigh_lists,
            slots,
            scaling=scaling,
            log_weights=self.selection.log_weights,
            rest_values=None if rest is None else rest.values,
            rest_logits=None if rest is None else rest.logits,
            rest_share=None if rest is None else rest.share,
            softmax=softmax,
        )

    def of(self, rows: Sequence[int], units: int | None = None) -> Selection:
        """The selection of some of its rows, by number; of those whose heads share so many lists, these."""
        chosen, at = self.selection, torch.tensor(rows, device=self.ks.device)
        per = 1 if units is None else chosen.indices.shape[1] // units
        logs = chosen.log_weights
        return Selection(
            chosen.indices[at, ::per],
            None if logs is None else logs[at, ::per],
            None if chosen.rest is None else _rows_of(chosen.rest, at),
            torch.as_tensor(chosen.keys_scored)[at],
            torch.as_tensor(chosen.bytes_read)[at],
        )


def as_index(numbers: Sequence[int], device: torch.device) -> Tensor | slice:
    """Ascending numbers as an index: one behind the other they are a slice, of which nothing is copied."""
    if numbers[-1] - numbers[0] + 1 == len(numbers):
        return slice(numbers[0], numbers[-1] + 1)
    return torch.tensor(numbers, device=device)


def stacked(chosen: Sequence[Chosen], heads: int, length: int) -> list[Lists]:
    """All selections, in as few stacks as they allow.

    Long lists stand apart from short ones, and rows with a `rest` alone.
    """
    alone = {one.rows.start for one in chosen if one.selection.rest is not None}
    kinds: dict[tuple[int, ...], list[Chosen]] = {}
    for one in chosen:
        begin = one.rows.start
        kind = (begin, one.place.start) if begin in alone else (one.k * LONG >= length,)
        kinds.setdefault(kind, []).append(one)
    return [_stack(some, heads) for some in kinds.values()]


def require_choices(chosen: Sequence[Chosen], stacks: Sequence[Lists], stops: Tensor) -> None:
    """Require at most k different slots that their queries see; stops [n].

    Raises: InputError by the indexer's name.
    """
    start = stops.new_zeros(1)
    try:
        for stack in stacks:
            seen = stops[None, stack.place]
            require_valid(stack.selection.indices, start, seen, stack.ks, "the selection")
    except InputError:
        for one in chosen:
            own = one.selection.indices[one.own]
            require_valid(own, start, stops[None, one.place], one.k, repr(one.indexer))
        raise


def _stack(some: Sequence[Chosen], heads: int) -> Lists:
    first = min(one.place.start for one in some)
    place = slice(first, max(one.place.stop for one in some))
    begins, numbers, ks, units = dict[int, int](), list[int](), list[int](), list[int]()
    weighted = list[bool]()
    for one in some:
        if one.rows.start not in begins:
            begins[one.rows.start] = len(numbers)
            count = one.rows.stop - one.rows.start
            numbers += range(one.rows.start, one.rows.stop)
            ks += [one.k] * count
            units += [one.lists] * count
            weighted += [one.selection.log_weights is not None] * count
    like = some[0].selection.indices
    wide = max(one.selection.indices.shape[-1] for one in some)
    shape = len(numbers), heads, place.stop - first
    slots = like.new_full((*shape, wide), -1)
    logs = torch.zeros(*shape, wide, device=like.device) if any(weighted) else None
    scored, read = torch.zeros(2, shape[0], shape[2], dtype=torch.float64, device=like.device)
    for one in some:
        begin, chosen = begins[one.rows.start], one.selection
        rows = slice(begin, begin + one.rows.stop - one.rows.start)
        at = slice(one.place.start - first, one.place.stop - first)
        _put(slots[rows, :, at], chosen.indices[one.own])
        if logs is not None and chosen.log_weights is not None:
            _put(logs[rows, :, at], chosen.log_weights[one.own])
        scored[rows, at] = _cost(chosen.keys_scored, one)
        read[rows, at] = _cost(chosen.bytes_read, one)
    rest = some[0].selection.rest
    rest = None if rest is None else _rows_of(rest, some[0].own)
    return Lists(numbers, place, Selection(slots, logs, rest, scored, read), ks, units, weighted)


def _rows_of(rest: Rest, rows: Tensor | slice) -> Rest:
    logits, share = rest.logits, rest.share
    return Rest(
        rest.values[rows],
        None if logits is None else logits[rows],
        None if share is None else share[rows],
    )


def _put(into: Tensor, lists: Tensor) -> None:
    """Write lists [B, Hs, n, w], one for several heads, to those of each head [B, Hq, n, W]."""
    by_unit = into.unflatten(1, (lists.shape[1], -1))
    by_unit[..., : lists.shape[-1]] = lists[:, :, None]


def _cost(cost: Tensor | float, one: Chosen) -> Tensor | float:
    return cost[one.own] if isinstance(cost, Tensor) and len(cost) > 1 else cost
