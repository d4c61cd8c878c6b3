# pyright: strict
"""Pages of streams behind the same slots: those that are full there are held once."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from topkit.indexers.base import Index, Step
from topkit.indexers.growing import ROUND, SHARE, room_for
from topkit.indexers.paged_index import PagedIndex
from topkit.indexers.pages import PageRecipe, Pages, bytes_of_page, scored, unseen


def scored_apart(recipe: PageRecipe) -> bool:
    """Whether a recipe of pages sees no more of them at a time than it scores."""
    return type(recipe).visible_scores.__module__.startswith("topkit.")


def parted(index: PagedIndex) -> dict[str, Any]:
    """The pages of an index of one row without padding: those that are full, and the one that is not."""
    full = index.slots // index.recipe.page_size
    trunk = {name: pages[:, :, :full] for name, pages in index.pages.items()}
    own = {name: pages[:, :, full:] for name, pages in index.pages.items()}
    own = {name: pages for name, pages in own.items() if pages.shape[2]}
    return {"trunk": trunk, "pages": own, "growing": {}}


@dataclass
class BranchedPages(PagedIndex):
    """The first pages in one row, `trunk`, and those behind them in rows of their own, `pages`."""

    trunk: Pages = field(default_factory=Pages)
    rows: int = 1
    # The pages of the buffer that a stream alone would have, and whether it would move at an append.
    buffer: int = 0
    moves: bool = True

    @property
    def before(self) -> int:
        return next(iter(self.trunk.values())).shape[2]

    @property
    def nbytes(self) -> int:
        """What each stream alone would hold: the trunk once a row, and the room behind all pages."""
        return self.rows * self._page_bytes * max(self.buffer, self._count)

    @property
    def streams(self) -> int:
        return self.rows

    def keep(self, closed: int) -> None:
        own = closed - self.before
        if own < 0:
            self.trunk = {name: pages[:, :, :closed] for name, pages in self.trunk.items()}
        self.pages = {name: pages[:, :, :own] for name, pages in self.pages.items() if own > 0}
        if not closed:
            self.buffer, self.moves = 0, True

    def of_pages(self, queries: Tensor, pages: Pages, step: Step) -> Tensor:
        # Others are promised pages of every row.
        own = type(self.recipe).__module__.startswith("topkit.")
        trunk = self.trunk if own else self._spread()
        held = [some for some in (trunk, pages) if some and next(iter(some.values())).shape[2]]
        scores = torch.cat([scored(self.recipe, queries, some, step) for some in held], -1)
        return unseen(scores, self.recipe.page_size, step)

    def reorder(self, rows: Tensor) -> None:
        super().reorder(rows)
        self.rows, self.buffer, self.moves = len(rows), 0, True

    def fork(self) -> Index:
        self.moves = True
        return super().fork()

    def room(self) -> Pages | None:
        return None

    @property
    def _count(self) -> int:
        return self.before + (next(iter(self.pages.values())).shape[2] if self.pages else 0)

    @property
    def _page_bytes(self) -> int:
        return bytes_of_page(self.trunk if self.before else self.pages)

    def _append(self, keys: Tensor, step: Step, closed: int) -> None:
        there = self._count
        super()._append(keys, step, closed)
        stop = self._count + 1
        if there and keys.shape[2] and (self.moves or stop > self.buffer):
            multiple = math.ceil(ROUND / self.recipe.page_size)
            self.buffer, self.moves = room_for(stop, SHARE, multiple), False

    def _spread(self) -> Pages:
        """The trunk in every row, as a view."""
        return {n: pages.expand(self.rows, *pages.shape[1:]) for n, pages in self.trunk.items()}
