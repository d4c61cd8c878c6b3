"""One layer's attention through an indexer: update the index, select, attend to the selection."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from topkit.errors import InputError
from topkit.experiments.decode.attention import sparse_attention
from topkit.experiments.decode.driver import Choice, Driver, require_choice, tokens
from topkit.experiments.decode.layer_index import LayerIndex
from topkit.experiments.decode.observer import Observer
from topkit.experiments.decode.upstream import Upstream
from topkit.experiments.model.compatibility import OFFERED
from topkit.indexers.base import Cache, Index, Indexer, Selection
from topkit.indexers.budget import Budget
from topkit.kernels.gather_attention import PLAIN, Softmax
from topkit.kernels.precision import full_precision

_PASSING = OFFERED - {"cache", "values", "upstream", "native"}


@dataclass(frozen=True)
class Call:
    """The input of one layer's attention: queries of the newest tokens, keys of all slots.

    Shapes: queries [B, Hq, t, D], keys [B, Hk, T, D], values [B, Hk, T, Dv], start [B]; inputs are
    of the t tokens.
    """

    layer: int
    queries: Tensor
    keys: Tensor
    values: Tensor
    scaling: float
    start: Tensor | None
    inputs: Mapping[str, Any]
    softmax: Softmax = PLAIN

    @property
    def cached(self) -> int:
        """Slots of the cache before the call."""
        return self.keys.shape[2] - self.queries.shape[2]

    def until(self, stop: int) -> Cache:
        return Cache(self.keys[:, :, :stop], self.values[:, :, :stop])


@dataclass(frozen=True)
class Reader:
    """Reads through an indexer on a budget, and has its selections judged if there is an observer."""

    indexer: Indexer
    budget: Budget
    seed: int
    judged: Observer | None = None
    backend: str = "auto"
    upstream: Upstream = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "upstream", Upstream(self.indexer))

    @full_precision()
    def take(self, layer: LayerIndex, call: Call, prompt: int) -> None:
        """Update the index up to the first query after `prompt` of the call's tokens.

        It is built when that query comes, on all that came before; or at once, where it needs inputs
        that exist during this call alone.
        Raises: InputError for tokens before attach whose inputs it needs.
        """
        cached, index, driver = call.cached, layer.index, self._driver(call)
        if index is not None and index.length > cached:
            driver.truncate(index, call.until(cached))
        passing = sorted(self.indexer.needs & _PASSING)
        if index is None and not passing and prompt == call.queries.shape[2]:
            return
        now = call.until(cached + prompt)
        inputs = {name: tokens(x, slice(0, prompt)) for name, x in call.inputs.items()}
        if index is None and passing and cached:
            raise InputError(
                f"{self.indexer} needs {', '.join(passing)} of the {cached} tokens that the cache "
                "already holds; attach before they are computed"
            )
        if index is None:
            inputs |= {"values": now.values, "prefill_queries": call.queries[:, :, :prompt]}
            layer.index = driver.build(now, inputs)
        elif prompt:
            driver.append(index, now, inputs)

    @full_precision()
    def read(
        self,
        layer: LayerIndex,
        call: Call,
        prompt: int,
        inside: Tensor | None = None,
        answer: bool = True,
    ) -> Tensor | None:
        """The output [B, Hq, t - prompt, Dv] of the queries after the prompt's, if it is wanted.

        `inside` [B, t - prompt]: those that are of their own row's prompt yet, and are not judged.
        Raises: InputError for rows whose prompts end at different slots, where that changes the index.
        """
        traits, outputs = self.indexer.traits(), []
        if inside is not None and (traits.drifts or "prefill_queries" in self.indexer.needs):
            raise InputError(
                f"{self.indexer} is built where the prompt ends, and the rows of this batch end "
                "theirs at different slots; score rows of one sparse_from_slot together"
            )
        above, parts = self.upstream.of(call.layer), list[Selection]()
        for place, k in self._budgets(call, prompt):
            among = slice(place.start - prompt, place.stop - prompt)
            own = None if inside is None else inside[:, among]
            read = None if above is None else tokens(above, among)
            choices = self._choices(layer, call, place, k, read)
            outputs += self._outputs(layer, call, place, k, choices, own, answer)
            parts += [choice.by_budget[k] for choice in choices]
        self.upstream.keep(call.layer, parts)
        return torch.cat(outputs, 2) if answer else None

    def _budgets(self, call: Call, prompt: int) -> Iterator[tuple[slice, int]]:
        """The queries after the prompt's, by their budgets: a share is of what each one sees."""
        count = call.queries.shape[2]
        if not self.budget.percent:
            yield slice(prompt, count), self.budget.at(call.keys.shape[2])
            return
        places = range(prompt, count)
        for k, several in groupby(places, lambda i: self.budget.at(call.cached + i + 1)):
            same = list(several)
            yield slice(same[0], same[-1] + 1), k

    @torch.no_grad()
    def _choices(
        self, layer: LayerIndex, call: Call, place: slice, k: int, upstream: Selection | None
    ) -> list[Choice]:
        """What the queries of some newest tokens, which the index lacks, select."""
        queries, cache = call.queries[:, :, place], call.until(call.cached + place.stop)
        assert layer.index is not None
        inputs = {name: tokens(x, place) for name, x in call.inputs.items()}
        driver = self._driver(call)
        return list(driver.select(layer.index, [k], queries, cache, inputs, upstream=upstream))

    def _outputs(
        self,
        layer: LayerIndex,
        call: Call,
        place: slice,
        k: int,
        choices: Sequence[Choice],
        inside: Tensor | None,
        answer: bool,
    ) -> list[Tensor]:
        """The outputs of the queries of some newest tokens, by what they selected."""
        queries, cache = call.queries[:, :, place], call.until(call.cached + place.stop)
        index, driver = layer.index, self._driver(call)
        assert index is not None
        outputs = []
        for choice in choices:
            part, selection = queries[:, :, choice.place], choice.by_budget[k]
            if self.backend != "triton":  # which waits for no GPU
                require_choice(choice, k, self.indexer, call.start)
            if answer:
                how = (call.scaling, self.backend, call.softmax)
                outputs.append(sparse_attention(part, cache, selection, *how))
            if self.judged is not None:
                step, keep = driver.step({}), None
                if inside is not None:
                    keep = ~inside[:, None, choice.place]
                self.judged.note(
                    part, cache, selection, k, step, choice, index.nbytes, keep, call.softmax
                )
        return outputs

    @full_precision()
    def read_at(self, index: Index, call: Call, new: Tensor, at: Tensor, stop: Tensor) -> Tensor:
        """The output [B, Hq, 1, Dv] of a step of fixed shapes: its key [B, Hk, 1, D] at the slot `at`."""
        cache = call.until(call.keys.shape[2])
        k = self.budget.at(call.keys.shape[2])
        selection = self._driver(call).select_at(
            index, [k], call.queries, cache, new, at, stop, call.inputs
        )[k]
        how = (call.scaling, self.backend, call.softmax)
        return sparse_attention(call.queries, cache, selection, *how)

    def _driver(self, call: Call) -> Driver:
        return Driver(
            self.indexer,
            call.layer,
            call.scaling,
            call.keys.shape[1],
            self.seed,
            call.start,
            self.backend,
            ordered=False,
            softmax=call.softmax,
        )
