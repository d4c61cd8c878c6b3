"""From keys and queries to selections: the one place that builds a Step and keeps to a recipe's traits."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from topkit.experiments.decode.formed import require_formed
from topkit.experiments.decode.host import moved
from topkit.experiments.decode.recipe_code import recipe_code
from topkit.fidelity.validity import require_valid
from topkit.indexers.base import Cache, Index, Indexer, Selection, Step
from topkit.kernels.gather_attention import PLAIN, Softmax

# Floats of scores, or of gathered keys, that one call may make: more queries go in pieces.
PIECE = 1 << 25
HOST = torch.device("cpu")

Inputs = Mapping[str, Any]
# What is computed once of the same queries and keys; see Step.memo.
Memo = dict[str, Tensor]


@dataclass(frozen=True)
class Choice:
    """What some of the queries selected: their place among all, and a selection for each budget.

    Shapes: stops [n], one past the last slot that each query sees.
    """

    place: slice
    by_budget: dict[int, Selection]
    stops: Tensor
    memo: Memo

    def on(self, device: torch.device) -> Choice:
        """The same where its queries are."""
        by_budget = {k: moved(one, device) for k, one in self.by_budget.items()}
        return Choice(self.place, by_budget, moved(self.stops, device), {})


@dataclass(frozen=True)
class Driver:
    """Drives a recipe through one layer of a stream; inputs are those that the driver can offer.

    Shapes: start [B], the first real slot of each row (None: 0).
    """

    indexer: Indexer
    layer: int
    scaling: float
    kv_heads: int
    seed: int | Tensor = 0
    start: Tensor | None = None
    backend: str = "auto"
    ordered: bool = True
    softmax: Softmax = PLAIN

    def step(
        self,
        inputs: Inputs,
        stop: Tensor | None = None,
        at: Tensor | None = None,
        memo: Memo | None = None,
        room: int | None = None,
        counted: bool = True,
    ) -> Step:
        """A step that shows the recipe those of the inputs that it declares."""
        return Step(
            self.layer,
            self.scaling,
            self.seed,
            self._near(self.start),
            self._near(stop),
            at,
            self.kv_heads,
            self.backend,
            self.ordered,
            self._read(inputs),
            self.indexer,
            memo=memo,
            room=room,
            counted=counted,
            softmax=self._softmax,
        )

    @cached_property
    def _softmax(self) -> Softmax:
        own = self.softmax.detached()
        return own.on(HOST) if self.indexer.traits().host else own

    def _near(self, x: Any) -> Any:
        """Where the recipe's index lies."""
        return moved(x, HOST) if self.indexer.traits().host else x

    def build(self, cache: Cache, inputs: Inputs) -> Index:
        """An index of all slots of the cache; the inputs are of their tokens."""
        step = self.step({"cache": cache, **inputs})
        with recipe_code(self.indexer, "build"):
            return self.indexer.build(self._near(cache.keys), step)

    def append(self, index: Index, cache: Cache, inputs: Inputs) -> None:
        """Append the slots of the cache that the index lacks; the inputs are of their tokens."""
        self._append(index, self._near(cache.since(index.length)), cache, inputs)

    def _append(self, index: Index, keys: Tensor, cache: Cache, inputs: Inputs) -> None:
        step = self.step({"cache": cache, **inputs})
        with recipe_code(self.indexer, "append"):
            index.append(keys, step)

    def truncate(self, index: Index, cache: Cache) -> None:
        """Cut the index to the slots of the cache."""
        with recipe_code(self.indexer, "truncate"):
            index.truncate(cache.length, self.step({"cache": cache}))

    def select(
        self,
        index: Index,
        ks: Sequence[int],
        queries: Tensor,
        cache: Cache,
        inputs: Inputs,
        where: QuerySlots | None = None,
        upstream: Selection | None = None,
    ) -> Iterator[Choice]:
        """Append the slots of the cache that the index lacks, and select for queries, in pieces.

        Codes that have seen a later key would let the future in: a recipe without `causal_codes` sees
        the keys up to a query's own, and then that query alone.
        Shapes: queries [B, Hq, Tq, D]; inputs are of the tokens that the index lacks. The queries are of
        the newest slots, and their inputs the last of `inputs`, unless `where` says otherwise; `upstream`
        is what the queries selected in an earlier layer.
        """
        where = where or QuerySlots.newest(queries, cache, inputs)
        if upstream is not None:
            where = replace(where, inputs={**where.inputs, "upstream": upstream})
        traits, device = self.indexer.traits(), queries.device
        if traits.host and device != HOST:
            queries, inputs, where = self._near(queries), self._read(inputs), where.on(self._read)
            if "cache" in self.indexer.needs:
                cache = self._near(cache)
        pieces = self._in_pieces if traits.causal_codes else self._one_by_one
        for choice in pieces(index, ks, queries, cache, inputs, where):
            yield choice if queries.device == device else choice.on(device)

    def _read(self, inputs: Inputs) -> dict[str, Any]:
        """The inputs that the recipe declares, once for all tokens."""
        needs = self.indexer.needs
        return {name: self._near(x) for name, x in inputs.items() if name in needs}

    def select_at(
        self,
        index: Index,
        ks: Sequence[int],
        queries: Tensor,
        cache: Cache,
        keys: Tensor,
        at: Tensor,
        stop: Tensor,
        inputs: Inputs,
        memo: Memo | None = None,
        counted: bool = False,
    ) -> dict[int, Selection]:
        """A step of fixed shapes: one key [B, Hk, 1, D] at the slot `at` [1], and its query.

        Of recipes that are `fixed`; the cache, which holds the key, is all its room. True scores in the memo
        are -inf where a slot is not seen; what the choice costs is said if it is `counted`.
        """
        room = cache.keys.shape[2]
        step = self.step({"cache": cache, **inputs}, stop, at, memo, room, counted)
        index.append(keys, step)
        return index.select_many(queries, ks, step)

    def _in_pieces(
        self,
        index: Index,
        ks: Sequence[int],
        queries: Tensor,
        cache: Cache,
        inputs: Inputs,
        where: QuerySlots,
    ) -> Iterator[Choice]:
        length, count = cache.length, queries.shape[2]
        if index.length < length:
            self.append(index, cache, inputs)
        width = piece(queries, length)
        for first in range(0, count, width):
            place = slice(first, min(first + width, count))
            stops = where.stops(place, queries.device)
            only_newest = count == 1 and where.slots[-1] == length - 1
            memo = where.memo if width >= count else {}
            step = self.step(
                {"cache": cache, **where.inputs_of(place)},
                None if only_newest else stops[None],
                memo=memo,
            )
            chosen = self._chosen(index, queries[:, :, place], ks, step, cache)
            yield Choice(place, chosen, stops, memo)

    def _one_by_one(
        self,
        index: Index,
        ks: Sequence[int],
        queries: Tensor,
        cache: Cache,
        inputs: Inputs,
        where: QuerySlots,
    ) -> Iterator[Choice]:
        begin = index.length
        lacking = self._near(cache.since(begin))
        for number, slot in enumerate(where.slots):
            place, now = slice(number, number + 1), cache.until(slot + 1)
            if index.length <= slot:
                fresh = slice(index.length - begin, slot + 1 - begin)
                own = {name: tokens(x, fresh) for name, x in inputs.items()}
                self._append(index, lacking[:, :, fresh], now, own)
            memo: Memo = {}
            step = self.step({"cache": now, **where.inputs_of(place)}, memo=memo)
            chosen = self._chosen(index, queries[:, :, place], ks, step, cache)
            yield Choice(place, chosen, where.stops(place, queries.device), memo)

    def _chosen(
        self, index: Index, queries: Tensor, ks: Sequence[int], step: Step, cache: Cache
    ) -> dict[int, Selection]:
        with recipe_code(self.indexer, "select"):
            chosen = index.select_many(queries, ks, step)
        require_formed(chosen, ks, self.indexer, queries, cache)
        return chosen


def require_choice(choice: Choice, k: int, indexer: Indexer, start: Tensor | None = None) -> None:
    """Require of a choice at k different slots that its queries see, whoever attends to them.

    Raises: InputError by the indexer's name.
    """
    stops = choice.stops[None]
    start = torch.zeros_like(stops[:, 0]) if start is None else start
    chosen = choice.by_budget[k].indices
    require_valid(chosen, start.to(chosen.device), stops, k, repr(indexer))


@dataclass(frozen=True)
class QuerySlots:
    """Queries within a cache: the slot of each one's own token, ascending, and their inputs.

    `inputs` have an entry for each query where inputs of keys have one for each token; `memo` is shared
    by all recipes that select for the same queries over the same cache.
    """

    slots: Sequence[int]
    inputs: Inputs
    memo: Memo = field(default_factory=dict)

    @classmethod
    def newest(cls, queries: Tensor, cache: Cache, inputs: Inputs) -> QuerySlots:
        """The queries of the newest slots, whose tokens the last of `inputs` are of."""
        length, count = cache.length, queries.shape[2]
        last = {name: tokens(x, slice(-count, None)) for name, x in inputs.items()}
        return cls(range(length - count, length), last)

    def on(self, move: Callable[[Inputs], Inputs]) -> QuerySlots:
        """The same with inputs that were moved, and nothing known: it lies elsewhere."""
        return QuerySlots(self.slots, move(self.inputs))

    def inputs_of(self, place: slice) -> dict[str, Any]:
        return {name: tokens(x, place) for name, x in self.inputs.items()}

    def stops(self, place: slice, device: torch.device) -> Tensor:
        """One past the last slot that each query of `place` sees [n]."""
        slots = self.slots[place]
        if isinstance(slots, range):  # made on the device: a list would have to be copied there
            return torch.arange(slots.start + 1, slots.stop + 1, device=device)
        return torch.tensor(slots, device=device) + 1


def piece(queries: Tensor, floats: int) -> int:
    """How many queries to select for in one call; each makes `floats` floats a head, mostly its scores."""
    return max(1, PIECE // max(1, queries.shape[0] * queries.shape[1] * floats))


def tokens(x: Any, place: slice) -> Any:
    """An input's tokens: hidden states [B, t, C], values [B, Hk, t, Dv], a pair of angles, or a selection."""
    if isinstance(x, tuple):
        return tuple(tokens(part, place) for part in x)
    if isinstance(x, Selection):
        weights = x.log_weights
        own = None if weights is None else weights[..., place, :]
        return replace(x, indices=x.indices[..., place, :], log_weights=own)
    return x[..., place, :]
