# pyright: strict
"""Streams behind the same slots: the codes of these are held once, and each row's own behind them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from functools import cache
from typing import Any, cast

import torch
from torch import Tensor

from topkit.indexers.base import Index, Indexer, Selection, Step
from topkit.indexers.channels import ChannelIndex
from topkit.indexers.combinator import Wrapped
from topkit.indexers.fitted import FittedIndex
from topkit.indexers.growing import room_for
from topkit.indexers.magicpig import PigIndex
from topkit.indexers.mean_key import MeanIndex
from topkit.indexers.misa import Routed
from topkit.indexers.rabitq import Reranked
from topkit.indexers.scored import Codes, Scored, ScoredIndex, masked, pooled, scored
from topkit.indexers.snapkv import snapkv
from topkit.indexers.sparq import SparqIndex
from topkit.indexers.tactic import TacticIndex
from topkit.indexers.traits import as_written
from topkit.kernels.select_topk import select_topk

# Kinds that read codes by `of_codes`, `whole` and `earliest` alone. Others may hold what a branch does not know of.
KINDS = (
    ScoredIndex, MeanIndex, ChannelIndex, SparqIndex, Reranked, PigIndex, Routed, TacticIndex,
)  # fmt: skip
# What is cooperative in an index that was fitted.
_OF_FITTED = (
    "append", "score", "visible_scores", "candidates", "chosen", "select", "select_many", "reorder", "fork",
)  # fmt: skip


def branched(index: Index, rows: int) -> Index:
    """`rows` streams behind the slots of an index of one row: as a fork whose rows are all that one.

    What an index of codes holds is not copied.
    """
    if isinstance(index, Wrapped):
        return replace(index, base=branched(index.base, rows))
    twin = index.fork()
    if isinstance(index, ScoredIndex) and index.codes and _known(index):
        state = {part.name: getattr(index, part.name) for part in fields(index)}
        state |= {"codes": {}, "growing": {}, "trunk": index.codes}
        twin = _branch_of(type(index))(**state)
    twin.reorder(torch.zeros(rows, dtype=torch.long))
    return twin


def held_once(recipe: Indexer) -> bool:
    """Whether branches of what a recipe builds share its codes."""
    own = type(recipe).build.__module__.startswith("topkit.") and recipe.requires != "faiss"
    return own and isinstance(recipe, Scored) and not isinstance(recipe, snapkv)


def _known(index: ScoredIndex) -> bool:
    fitted = isinstance(index, FittedIndex) and as_written(index, FittedIndex, *_OF_FITTED)
    return type(index) in KINDS or fitted


@cache
def _branch_of(kind: type[ScoredIndex]) -> type[BranchedIndex]:
    """A kind of index as a branch: what the kind does stands before what a branch does, and that before ScoredIndex."""
    if kind is ScoredIndex:
        return BranchedIndex
    bases: tuple[Any, ...] = (kind, BranchedIndex)
    made = type(f"Branched{kind.__name__}", bases, {"__module__": __name__})
    return cast(type[BranchedIndex], dataclass(made))


@dataclass
class BranchedIndex(ScoredIndex):
    """Codes of the first slots in one row, `trunk`, and of what came behind them in rows of their own, `codes`.

    Nothing bounds what is scored at once: all scores of the trunk are written.
    """

    trunk: Codes = field(default_factory=Codes)
    rows: int = 1
    # The slots of the buffer that a stream alone would have, and whether it would move at an append.
    buffer: int = 0
    moves: bool = True

    @property
    def began(self) -> int:
        """The slots of the trunk."""
        return next(iter(self.trunk.values())).shape[2]

    @property
    def nbytes(self) -> int:
        """What each stream alone would hold: the trunk once a row, and the room behind all slots."""
        each = sum(x.numel() * x.element_size() for x in self.trunk.values()) // self.began
        return self.rows * each * max(self.buffer, self.slots)

    @property
    def earliest(self) -> Codes:
        return self.trunk

    def whole(self) -> Codes:
        """Made anew at each call."""
        trunk = self._spread()
        if not self.codes:
            return trunk
        return {name: torch.cat([code, self.codes[name]], 2) for name, code in trunk.items()}

    def of_codes(self, make: Callable[[Codes], Tensor]) -> Tensor:
        # Others are promised codes of every row.
        own = type(self.recipe).__module__.startswith("topkit.")
        trunk = self.trunk if own else self._spread()
        return torch.cat([make(codes) for codes in (trunk, self.codes) if codes], -1)

    def append(self, keys: Tensor, step: Step) -> None:
        own = ScoredIndex(self.recipe, self.codes, self.slots - self.began, self.growing)
        own.append(keys, step)
        self.codes, self.slots = own.codes, self.began + own.slots
        if self.moves or self.slots > self.buffer:
            self.buffer, self.moves = room_for(self.slots), False

    def truncate(self, length: int, step: Step) -> None:
        own, self.slots = length - self.began, length
        if own < 0:
            self.trunk = {name: code[:, :, :length] for name, code in self.trunk.items()}
        kept = {name: code[:, :, : max(own, 0)] for name, code in self.codes.items()}
        self.codes = kept if own > 0 else {}

    def reorder(self, rows: Tensor) -> None:
        super().reorder(rows)
        self.rows, self.buffer, self.moves = len(rows), 0, True

    def fork(self) -> Index:
        self.moves = True
        return super().fork()

    def room(self) -> Codes | None:
        return None

    def score(self, queries: Tensor, step: Step) -> Tensor:
        return self.of_codes(lambda codes: scored(self.recipe, queries, codes, step))

    def chosen(self, queries: Tensor, k: int, step: Step, pool: str | None = None) -> Selection:
        # A kind has changed its queries already: its own `score` would change them again.
        scores = pooled(BranchedIndex.score(self, queries, step), step.kv_heads, pool)
        seen = step.seen(self.slots, queries.shape[2], queries.device)
        slots = select_topk(masked(scores, step), k)
        return Selection(slots, keys_scored=seen, bytes_read=seen * self.bytes_per_key(step))

    def _spread(self) -> Codes:
        """The trunk in every row, as a view."""
        return {n: code.expand(self.rows, *code.shape[1:]) for n, code in self.trunk.items()}
