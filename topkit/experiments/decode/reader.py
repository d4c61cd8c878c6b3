"""One layer's attention through an indexer: update the index, select, attend to the selection."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from topkit.errors import InputError
from topkit.experiments.decode.attention import sparse_attention
from topkit.experiments.decode.cache import LayerIndex
from topkit.experiments.decode.driver import Driver, tokens
from topkit.experiments.decode.observer import Observer
from topkit.experiments.model.compatibility import OFFERED
from topkit.indexers.base import Cache, Index, Indexer
from topkit.indexers.budget import Budget

_PASSING = OFFERED - {"cache", "values"}


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

    def read(
        self, layer: LayerIndex, call: Call, prompt: int, answer: bool = True
    ) -> Tensor | None:
        """The output [B, Hq, t - prompt, Dv] of the queries after the prompt's, if it is wanted."""
        queries, length = call.queries[:, :, prompt:], call.keys.shape[2]
        cache, index, k = call.until(length), layer.index, self.budget.at(length)
        assert index is not None
        inputs = {name: tokens(x, slice(prompt, None)) for name, x in call.inputs.items()}
        driver = self._driver(call)
        with torch.no_grad():
            choices = list(driver.select(index, [k], queries, cache, inputs))
        outputs = []
        for choice in choices:
            part, selection = queries[:, :, choice.place], choice.by_budget[k]
            if answer:
                outputs.append(sparse_attention(part, cache, selection, call.scaling, self.backend))
            if self.judged is not None:
                step = driver.step({})
                self.judged.note(part, cache, selection, k, step, choice, index.nbytes)
        return torch.cat(outputs, 2) if answer else None

    def read_at(self, index: Index, call: Call, new: Tensor, at: Tensor, stop: Tensor) -> Tensor:
        """The output [B, Hq, 1, Dv] of a step of fixed shapes: its key [B, Hk, 1, D] at the slot `at`."""
        cache = call.until(call.keys.shape[2])
        k = self.budget.at(call.keys.shape[2])
        selection = self._driver(call).select_at(index, k, call.queries, new, at, stop, call.inputs)
        return sparse_attention(call.queries, cache, selection, call.scaling, self.backend)

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
        )
