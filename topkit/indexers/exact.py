# pyright: strict
"""Exact Top-k: the oracle that every other indexer is judged against."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from topkit.indexers.base import Index, Selection, Step
from topkit.indexers.candidates import Candidates
from topkit.indexers.scored import best, cut_each
from topkit.indexers.stateless import SlotCount, Stateless
from topkit.indexers.traits import Traits
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
        return Traits(needs=frozenset({"cache"}), score_all=True, fixed=True)

    def build(self, keys: Tensor, step: Step) -> Index:
        return _Exact(self, keys.shape[2])

    def choose(self, queries: Tensor, k: int, step: Step, length: int) -> Selection:
        return best(true_scores(queries, step, length), k, step, key_bytes(step))

    def choose_many(
        self, queries: Tensor, ks: Sequence[int], step: Step, length: int
    ) -> dict[int, Selection]:
        return cut_each(self.choose(queries, max(ks), step, length), ks)


class _Exact(SlotCount):
    def candidates(self, queries: Tensor, k: int, step: Step) -> Candidates:
        return Candidates(self.visible_scores(queries, step))

    def visible_scores(self, queries: Tensor, step: Step) -> Tensor:
        seen: dict[str, Any] = {"start": step.start, "stop": step.stop, "backend": step.backend}
        return score_keys(queries, step.cache.keys, **seen)

    def select(self, queries: Tensor, k: int, step: Step) -> Selection:
        if step.at is None:
            return super().select(queries, k, step)
        how: dict[str, Any] = {"ordered": step.ordered, "backend": step.backend}
        return Selection(self.candidates(queries, k, step).best(k, **how))

    def score(self, queries: Tensor, step: Step) -> Tensor:
        return true_scores(queries, step, self.slots)

    def bytes_per_key(self, step: Step) -> float:
        return key_bytes(step)


def true_scores(queries: Tensor, step: Step, length: int) -> Tensor:
    """Float32 dot products [B, Hq, Tq, length] with the keys that attention reads, computed once a step."""
    keys = step.cache.keys
    return step.once(true_scores_of(length), lambda: score(queries, keys[:, :, :length]))


def key_bytes(step: Step) -> int:
    """Bytes of one token's keys, over all KV heads."""
    keys = step.cache.keys
    return keys.shape[1] * keys.shape[3] * keys.element_size()


def true_scores_of(length: int) -> str:
    """What a step's memo calls the true scores of so many keys."""
    return f"true scores of {length} keys"
