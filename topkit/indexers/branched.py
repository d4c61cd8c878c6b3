# pyright: strict
"""Streams behind the same slots: what an index holds of these is held once, and each row's own behind it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields, is_dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from topkit.indexers.base import Index, Indexer, Selection, Step
from topkit.indexers.branched_pages import BranchedPages, parted, scored_apart
from topkit.indexers.channels import ChannelIndex
from topkit.indexers.clustered import Clustered
from topkit.indexers.combinator import Combinator
from topkit.indexers.fitted import FittedIndex
from topkit.indexers.growing import room_for
from topkit.indexers.h2o import h2o
from topkit.indexers.magicpig import PigIndex
from topkit.indexers.mean_key import MeanIndex
from topkit.indexers.misa import Routed
from topkit.indexers.paged import Paged
from topkit.indexers.paged_index import PagedIndex
from topkit.indexers.rabitq import Reranked
from topkit.indexers.retrieval_attention import retrieval_attention
from topkit.indexers.scored import Codes, Scored, ScoredIndex, gathered, masked, pooled, scored
from topkit.indexers.snapkv import Ballot
from topkit.indexers.sparq import SparqIndex
from topkit.indexers.stateless import Stateless
from topkit.indexers.tactic import TacticIndex
from topkit.indexers.traits import as_written
from topkit.kernels.select_topk import select_topk

# Kinds that read codes by `of_codes`, `whole` and `earliest` alone. Others may hold what a branch does not know of.
KINDS = (
    ScoredIndex, MeanIndex, ChannelIndex, SparqIndex, Reranked, PigIndex, Routed, TacticIndex, Ballot,
)  # fmt: skip
# What is cooperative in an index that was fitted.
_OF_FITTED = (
    "append", "score", "visible_scores", "candidates", "chosen", "select", "select_many", "reorder", "fork",
)  # fmt: skip


def branched(index: Index, rows: int) -> Index:
    """`rows` streams behind the slots of an index of one row without padding: as a fork whose rows are all that one.

    What an index of codes or pages holds is not copied.
    """
    twin = _trunk(index.fork())
    twin.reorder(torch.zeros(rows, dtype=torch.long))
    return twin


def held_once(recipe: Indexer) -> bool:
    """Whether branches of what a recipe builds share what it holds of each key."""
    if isinstance(recipe, Combinator):
        own = type(recipe).__module__.startswith("topkit.")
        return own and held_once(recipe.base)
    own = type(recipe).build.__module__.startswith("topkit.") and recipe.requires != "faiss"
    if isinstance(recipe, Paged):
        return own and scored_apart(recipe)
    return own and isinstance(recipe, Scored | Clustered | Stateless | h2o | retrieval_attention)


def _trunk(index: Index) -> Index:
    """A fork of one row whose slots rows will share."""
    if not type(index).__module__.startswith("topkit.") or not is_dataclass(index):
        return index
    for name, x in vars(index).items():
        if isinstance(x, Index):
            setattr(index, name, _trunk(x))
    state = {part.name: getattr(index, part.name) for part in fields(index)}
    if isinstance(index, PagedIndex) and index.pages and scored_apart(index.recipe):
        return branch_of(type(index), BranchedPages)(**state | parted(index))
    if isinstance(index, ScoredIndex) and index.codes and _known(index):
        own = {"codes": {}, "growing": {}, "trunk": index.codes}
        return branch_of(type(index), BranchedIndex)(**state | own)
    return index


@cache
def branch_of(kind: type[Index], branch: type[Index]) -> Any:
    """A kind of index as a branch: what the kind does stands before what a branch does, and that before their base."""
    if kind in branch.__bases__:
        return branch
    bases: tuple[Any, ...] = (kind, branch)
    return dataclass(type(f"Branched{kind.__name__}", bases, {"__module__": __name__}))


def _known(index: ScoredIndex) -> bool:
    fitted = isinstance(index, FittedIndex) and as_written(index, FittedIndex, *_OF_FITTED)
    return type(index) in KINDS or fitted


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

    def since(self, first: int) -> Codes:
        spread = {name: code[:, :, first:] for name, code in self._spread().items()}
        if not self.codes:
            return spread
        own = {n: code[:, :, max(first - self.began, 0) :] for n, code in self.codes.items()}
        return own if first >= self.began else {n: torch.cat([spread[n], own[n]], 2) for n in own}

    def of_slots(self, slots: Tensor) -> Codes:
        began = self.began
        early = {n: gathered(x, slots.clamp_max(began - 1)) for n, x in self._spread().items()}
        if not self.codes:
            return early
        late = {n: gathered(x, (slots - began).clamp_min(0)) for n, x in self.codes.items()}
        first = (slots < began)[..., None]
        return {n: early[n].where(first, late[n]) for n in early}

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
