# pyright: strict, reportUnnecessaryIsInstance=false
"""Combinators: recipes over a recipe, which forward all but the choice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor

from topkit.errors import InputError
from topkit.indexers.base import Index, Indexer, Selection, Step
from topkit.indexers.candidates import Candidates
from topkit.indexers.stated_cost import Cost, Shape
from topkit.indexers.traits import Traits


@dataclass(frozen=True)
class Combinator(Indexer):
    """A recipe that writes how it chooses by way of `base`, whose laws and needs it takes over."""

    base: Indexer

    family: ClassVar[str] = "combinator"
    # What it reads besides what base reads.
    reads: ClassVar[frozenset[str]] = frozenset()

    def choose(self, index: Index, queries: Tensor, k: int, step: Step) -> Selection:
        """At most k keys for each of queries [B, Hq, Tq, D], by way of base's index.

        The step is the combinator's; `step.given_to(self.base)` is base's.
        """
        raise NotImplementedError(f"{type(self).__name__}.choose")

    def choose_many(
        self, index: Index, queries: Tensor, ks: Sequence[int], step: Step
    ) -> dict[int, Selection]:
        """`choose` at several budgets; combinators that can share work between them write it."""
        return {k: self.choose(index, queries, k, step) for k in ks}

    def __post_init__(self) -> None:
        name = type(self).__name__
        if not isinstance(self.base, Indexer):
            raise InputError(f"{name}: base must be an indexer such as sign(); got {self.base!r}")
        if self.base.traits().weighted:
            raise InputError(
                f"{name} would bias the weighted sample of {self.base}; put the sampling outermost"
            )

    def candidates(self, index: Index, queries: Tensor, k: int, step: Step) -> Candidates | None:
        """`Index.candidates`, by way of base's index."""
        return None

    def score(self, index: Index, queries: Tensor, step: Step) -> Tensor:
        """Scores of every key, by way of base's index, for those that `score_all`."""
        raise InputError(f"{self} does not score every key")

    def visible_scores(self, index: Index, queries: Tensor, step: Step) -> Tensor:
        """`Index.visible_scores`, by way of base's index."""
        raise InputError(f"{self} does not score every key")

    def traits(self) -> Traits:
        needs = self.base.needs | self.reads
        # What base's index can do beyond choosing is not the combinator's, unless it says so.
        return replace(
            self.base.traits(), needs=needs, fixed=False, score_all=False, weighted=False
        )

    def costs(self, shape: Shape) -> Cost:
        return self.base.costs(shape)

    def widths(self) -> dict[str, int]:
        return dict(self.base.widths())

    def models(self) -> frozenset[str]:
        return self.base.models()

    def upstream_layer(self, layer: int) -> int | None:
        return self.base.upstream_layer(layer)

    def build(self, keys: Tensor, step: Step) -> Index:
        return Wrapped(self, self.base.build(keys, step.given_to(self.base)))


@dataclass
class Wrapped(Index):
    """Base's index, chosen from in another way."""

    recipe: Combinator
    base: Index

    @property
    def length(self) -> int:
        return self.base.length

    @property
    def nbytes(self) -> int:
        return self.base.nbytes

    def append(self, keys: Tensor, step: Step) -> None:
        self.base.append(keys, step.given_to(self.recipe.base))

    def select(self, queries: Tensor, k: int, step: Step) -> Selection:
        return self.recipe.choose(self.base, queries, k, step)

    def select_many(self, queries: Tensor, ks: Sequence[int], step: Step) -> dict[int, Selection]:
        if step.at is not None:
            return {k: self.select(queries, k, step) for k in ks}
        return self.recipe.choose_many(self.base, queries, ks, step)

    def candidates(self, queries: Tensor, k: int, step: Step) -> Candidates | None:
        return self.recipe.candidates(self.base, queries, k, step)

    def visible_scores(self, queries: Tensor, step: Step) -> Tensor:
        return self.recipe.visible_scores(self.base, queries, step)

    def score(self, queries: Tensor, step: Step) -> Tensor:
        return self.recipe.score(self.base, queries, step)

    def bytes_per_key(self, step: Step) -> float:
        return self.base.bytes_per_key(step.given_to(self.recipe.base))

    def room(self) -> Mapping[str, Tensor] | None:
        return self.base.room()

    def reveal(self, length: int) -> None:
        self.base.reveal(length)

    def truncate(self, length: int, step: Step) -> None:
        self.base.truncate(length, step.given_to(self.recipe.base))

    def reorder(self, rows: Tensor) -> None:
        self.base.reorder(rows)

    def fork(self) -> Index:
        return replace(self, base=self.base.fork())


def best_at(candidates: Candidates, k: int, step: Step) -> Selection:
    """The k best of some candidates, at a step of fixed shapes."""
    slots = candidates.best(k, ordered=step.ordered, backend=step.backend)
    return Selection(slots, keys_scored=candidates.keys_scored, bytes_read=candidates.bytes_read)


def every_score(recipe: Combinator) -> None:
    """Require that base scores every key."""
    if not recipe.base.traits().score_all:
        raise InputError(
            f"{type(recipe).__name__} reads a score for every key, and {recipe.base} has none; "
            f"wrap it the other way round"
        )
