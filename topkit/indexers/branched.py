# pyright: strict
"""Streams behind the same slots: the codes of these are held once, and each row's own behind them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from topkit.indexers.base import Index, Selection, Step
from topkit.indexers.combinator import Wrapped
from topkit.indexers.fitted import FittedIndex
from topkit.indexers.growing import room_for
from topkit.indexers.mean_key import MeanIndex
from topkit.indexers.scored import Codes, ScoredIndex, masked, pooled, scored
from topkit.indexers.traits import as_written
from topkit.kernels.select_topk import select_topk

# What a branch does in the place of an index that was fitted.
_OF_FITTED = ("append", "score", "chosen", "select", "select_many", "reorder", "fork")


def branched(index: Index, rows: int) -> Index:
    """`rows` streams behind the slots of an index of one row: as a fork whose rows are all that one.

    What an index of codes holds is not copied.
    """
    if isinstance(index, Wrapped):
        return replace(index, base=branched(index.base, rows))
    # Other kinds of one's own may hold what a branch does not know of.
    fits = isinstance(index, FittedIndex) and as_written(index, FittedIndex, *_OF_FITTED)
    known = type(index) in (ScoredIndex, MeanIndex) or fits
    if known and isinstance(index, ScoredIndex) and index.codes:
        mean = index.mean if isinstance(index, MeanIndex) else None
        fit = None
        if isinstance(index, FittedIndex):
            fit = replace(index, codes={}, slots=0, growing={})
            fit.reorder(torch.zeros(rows, dtype=torch.long))
        return BranchedIndex(
            index.recipe, slots=index.slots, trunk=index.codes, rows=rows, mean=mean, fit=fit
        )
    twin = index.fork()
    twin.reorder(torch.zeros(rows, dtype=torch.long))
    return twin


@dataclass
class BranchedIndex(ScoredIndex):
    """Codes of the first slots in one row, `trunk`, and of what came behind them in rows of their own.

    mean [1, Hk, 1, D]: what is taken from all keys; `fit`: what was fitted to the trunk, and no codes.
    Nothing bounds what is scored at once: all scores of the trunk are written.
    """

    trunk: Codes = field(default_factory=Codes)
    rows: int = 1
    mean: Tensor | None = None
    fit: FittedIndex | None = None
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
        mean = 0 if self.mean is None else self.mean.numel() * self.mean.element_size()
        fitted = 0 if self.fit is None else self.fit.nbytes
        return self.rows * (each * max(self.buffer, self.slots) + mean) + fitted

    def append(self, keys: Tensor, step: Step) -> None:
        own = ScoredIndex(self.recipe, self.codes, self.slots - self.began, self.growing)
        keys = keys if self.mean is None else keys - self.mean
        own.append(keys if self.fit is None else self.fit.of_keys(keys), step)
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
        if self.fit is not None:
            self.fit = replace(self.fit)  # a fork may have it too
            self.fit.reorder(rows)
        self.rows, self.buffer, self.moves = len(rows), 0, True

    def fork(self) -> Index:
        self.moves = True
        return super().fork()

    def room(self) -> Codes | None:
        return None

    def score(self, queries: Tensor, step: Step) -> Tensor:
        trunk = self.trunk
        queries = queries if self.fit is None else self.fit.of_queries(queries)
        if not type(self.recipe).__module__.startswith("topkit."):
            # Others are promised codes of every row.
            trunk = {n: code.expand(len(queries), *code.shape[1:]) for n, code in trunk.items()}
        parts = [
            scored(self.recipe, queries, codes, step) for codes in (trunk, self.codes) if codes
        ]
        return torch.cat(parts, -1)

    def chosen(self, queries: Tensor, k: int, step: Step, pool: str | None = None) -> Selection:
        scores = pooled(self.score(queries, step), step.kv_heads, pool)
        seen = step.seen(self.slots, queries.shape[2], queries.device)
        slots = select_topk(masked(scores, step), k)
        fitted = 0 if self.fit is None else self.fit.read_bytes
        read = seen * self.bytes_per_key(step) + fitted
        return Selection(slots, keys_scored=seen, bytes_read=read)

    def bytes_per_key(self, step: Step) -> float:
        return sum(code[0, :, 0].numel() * code.element_size() for code in self.trunk.values())
