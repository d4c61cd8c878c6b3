# pyright: strict
"""Random decoding streams, and the driver's side of the contract over them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from topkit.indexers.base import Cache, Index, Indexer, Selection, Step
from topkit.indexers.streaming_llm import ends

T = TypeVar("T")


@dataclass(frozen=True)
class Stream:
    """All that a driver could hand over, token by token; token i asks queries[:, :, i].

    Shapes: queries [B, Hq, T, D]; keys, values [B, Hk, T, D]; start [B] or None; by their names, tokens
    [B, T, width] and vectors [B, heads, T, width].
    """

    queries: Tensor
    keys: Tensor
    values: Tensor
    tokens: dict[str, Tensor]
    vectors: dict[str, Tensor]
    start: Tensor | None = None
    kv_heads: int = 2
    layer: int = 0
    seed: int = 0

    @property
    def length(self) -> int:
        return self.keys.shape[2]

    @property
    def tensors(self) -> list[Tensor]:
        return [self.queries, self.keys, self.values, *self.tokens.values(), *self.vectors.values()]

    def starts(self) -> Tensor:
        """The first real slot of each row [B]."""
        none = torch.zeros(self.keys.shape[0], dtype=torch.long, device=self.keys.device)
        return none if self.start is None else self.start

    def inputs(
        self, tokens: slice | Tensor, length: int, stop: Tensor | None
    ) -> dict[str, Callable[[], Any]]:
        """How to make every input there is: the tokens' own, and the cache of the first `length` slots."""

        def newest() -> Tensor:
            where = Step(start=self.start, stop=stop)
            count = self.queries[0, 0, tokens].shape[0]
            slots = ends(where, length, count, 0, 8, min(8, length), self.keys.device)
            return slots.expand(self.keys.shape[0], -1, -1, -1)

        def of(name: str) -> Tensor:
            return self.tokens[name][:, tokens]

        def along(name: str) -> Callable[[], Tensor]:
            return lambda: self.vectors[name][:, :, tokens]

        return {
            "cache": lambda: Cache(self.keys[:, :, :length], self.values[:, :, :length]),
            "hidden": lambda: of("hidden"),
            "latent": lambda: of("latent"),
            "rope": lambda: (of("cos"), of("sin")),
            "values": lambda: self.values[:, :, tokens],
            "upstream": lambda: Selection(newest()),
            "native": lambda: newest()[:, 0],
            "index_weights": lambda: of("index_weights"),
            **{name: along(name) for name in self.vectors},
        }

    def step(
        self,
        indexer: Indexer,
        tokens: slice | Tensor,
        length: int,
        stop: Tensor | None = None,
        without: str = "",
        call: str = "select",
    ) -> Step:
        """The step of a call for `tokens` when `length` slots are cached, as `indexer` may see it.

        Drivers offer the prompt's queries where an index is built, and another layer's selection where
        one is made.
        """
        elsewhere = {"prefill_queries": "build", "upstream": "select", "native": "select"}
        offered = {
            name: made()
            for name, made in self.inputs(tokens, length, stop).items()
            if name in indexer.needs and name != without and elsewhere.get(name, call) == call
        }
        return Step(
            layer=self.layer,
            scaling=self.keys.shape[3] ** -0.5,
            seed=self.seed,
            start=self.start,
            stop=stop,
            kv_heads=self.kv_heads,
            inputs=offered,
        ).given_to(indexer)

    def step_at(self, indexer: Indexer, length: int) -> Step:
        """The step of the last of `length` tokens at fixed shapes: later ones stand in the cache's room."""
        step = self.step(indexer, slice(length - 1, length), length)
        device = self.keys.device
        places: dict[str, Any] = {
            "at": torch.tensor([length - 1], device=device),
            "stop": torch.tensor([[length]], device=device),
            "room": self.length,
        }
        if not step.has("cache"):
            return replace(step, **places)
        whole = Cache(self.keys, self.values)
        return replace(step, inputs={**step.inputs, "cache": whole}, **places)

    def build(
        self, indexer: Indexer, cuts: Sequence[int] | None = None, without: str = ""
    ) -> Index:
        """An index built on the first cut and appended to up to each other (None: all at once)."""
        first, *others = cuts or [self.length]
        step = self.step(indexer, slice(0, first), first, without=without, call="build")
        index = _typed(indexer.build(self.keys[:, :, :first], step), Index, "build")
        for cut in others:
            self.append(indexer, index, cut, without)
        return index

    def append(self, indexer: Indexer, index: Index, cut: int, without: str = "") -> None:
        tokens = slice(index.length, cut)
        step = self.step(indexer, tokens, cut, without=without, call="append")
        index.append(self.keys[:, :, tokens], step)

    def truncate(self, indexer: Indexer, index: Index, length: int) -> None:
        index.truncate(length, self.step(indexer, slice(0, 0), length))

    def ask(
        self, indexer: Indexer, index: Index, k: int, count: int = 1, without: str = ""
    ) -> Selection:
        """What the last `count` tokens of the index select."""
        tokens = slice(index.length - count, index.length)
        step = self.step(indexer, tokens, index.length, without=without)
        return _typed(index.select(self.queries[:, :, tokens], k, step), Selection, "select")

    def ask_each(self, indexer: Indexer, index: Index, ks: Sequence[int]) -> dict[int, Selection]:
        """What the last token selects at several budgets, asked one after the other."""
        return {k: self.ask(indexer, index, k) for k in ks}

    def ask_at(self, indexer: Indexer, index: Index, k: int, tokens: Tensor) -> Selection:
        """What earlier tokens select, each of the slots up to its own."""
        step = self.step(indexer, tokens, index.length, stop=tokens[None] + 1)
        return index.select(self.queries[:, :, tokens], k, step)

    def gather(self, rows: Tensor) -> Stream:
        """Row i becomes row rows[i]."""
        return self._map(lambda x: x[rows], None if self.start is None else self.start[rows])

    def alone(self, row: int) -> Stream:
        """One row, its padding removed."""
        first = int(self.starts()[row])
        one = self._map(lambda x: x[row : row + 1], None)
        return replace(
            one,
            queries=one.queries[:, :, first:],
            keys=one.keys[:, :, first:],
            values=one.values[:, :, first:],
            tokens={name: x[:, first:] for name, x in one.tokens.items()},
            vectors={name: x[:, :, first:] for name, x in one.vectors.items()},
        )

    def to(self, to: torch.device | torch.dtype) -> Stream:
        start = self.start
        if start is not None and isinstance(to, torch.device):
            start = start.to(to)
        return self._map(lambda x: x.to(to), start)

    def spliced(self, other: Stream, at: int) -> Stream:
        """This stream up to slot `at`, the other's tokens from there on."""
        return replace(
            self,
            queries=torch.cat([self.queries[:, :, :at], other.queries[:, :, at:]], 2),
            keys=torch.cat([self.keys[:, :, :at], other.keys[:, :, at:]], 2),
            values=torch.cat([self.values[:, :, :at], other.values[:, :, at:]], 2),
            tokens={
                name: torch.cat([x[:, :at], other.tokens[name][:, at:]], 1)
                for name, x in self.tokens.items()
            },
            vectors={
                name: torch.cat([x[:, :, :at], other.vectors[name][:, :, at:]], 2)
                for name, x in self.vectors.items()
            },
        )

    def repeated(self) -> Stream:
        """One copy of its group's KV head for each query head."""
        times = self.queries.shape[1] // self.keys.shape[1]
        return replace(
            self,
            keys=self.keys.repeat_interleave(times, 1),
            values=self.values.repeat_interleave(times, 1),
        )

    def _map(self, change: Callable[[Tensor], Tensor], start: Tensor | None) -> Stream:
        return replace(
            self,
            queries=change(self.queries),
            keys=change(self.keys),
            values=change(self.values),
            tokens={name: change(x) for name, x in self.tokens.items()},
            vectors={name: change(x) for name, x in self.vectors.items()},
            start=start,
        )


def _typed(x: T, kind: type[T], method: str) -> T:
    assert isinstance(x, kind), f"{method} must return {kind.__name__}; got {type(x).__name__}"
    return x


def parts(indexer: Indexer) -> list[Indexer]:
    """A recipe and all the recipes inside it."""
    inner = [x for x in vars(indexer).values() if isinstance(x, Indexer)]
    return [indexer, *(part for x in inner for part in parts(x))]
