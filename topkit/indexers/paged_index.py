# pyright: strict
"""The state of a recipe that judges pages: a summary of each."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from topkit.indexers.base import Index, Selection, Step
from topkit.indexers.growing import ROUND, Growing
from topkit.indexers.pages import PageRecipe, Pages, above, by_page, bytes_of_page, summarised
from topkit.indexers.scored import cut_each
from topkit.kernels.select_pages import select_pages


@dataclass
class PagedIndex(Index):
    """A summary of every page, in buffers of its own.

    Only pages that new keys fall into are written. An index that shares its buffers, forked, or begins
    a page moves to new ones.
    """

    recipe: PageRecipe
    pages: Pages = field(default_factory=Pages)
    slots: int = 0
    growing: dict[str, Growing] = field(default_factory=dict[str, Growing])
    # Whether the newest page was summarised with a key that does not show.
    ahead: bool = False

    @property
    def length(self) -> int:
        return self.slots

    @property
    def before(self) -> int:
        """Pages that stand elsewhere, before `pages`."""
        return 0

    @property
    def nbytes(self) -> int:
        """The room that pages keep behind them counts."""
        return sum(pages.untyped_storage().nbytes() for pages in self.pages.values())

    def append(self, keys: Tensor, step: Step) -> None:
        if step.at is not None:
            self.ahead = True
            self.recipe.write(self._roomy(), step.cache.keys, step)
            return
        if self.ahead:
            self.truncate(self.slots, step)
        self._append(keys, step, 0)

    def room(self) -> Pages | None:
        roomy: Pages = {}
        for name, pages in self.pages.items():
            whole = self.growing[name].whole(pages) if name in self.growing else None
            if whole is None:
                return None
            roomy[name] = whole
        return roomy

    def reveal(self, length: int) -> None:
        after = math.ceil(length / self.recipe.page_size)
        self.pages = {name: self.growing[name].until(after) for name in self.pages}
        self.slots, self.ahead = length, False

    def _roomy(self) -> Pages:
        pages = self.room()
        assert pages is not None
        return pages

    def truncate(self, length: int, step: Step) -> None:
        self.ahead = False
        # No summary gives a key back: the pages that the cut goes through are made anew.
        start = step.starts()
        closed = max(int(length - start.max()) // self.recipe.page_size, 0)
        rows = self.streams
        self.keep(closed)
        self.slots = int(start.min()) + closed * self.recipe.page_size if closed else 0
        keys = self.keys_from(self.slots, length, step)
        self._append(keys.expand(rows, -1, -1, -1), step, closed)

    @property
    def streams(self) -> int:
        """The rows; there are pages."""
        return next(iter(self.pages.values())).shape[0]

    def keep(self, closed: int) -> None:
        """Forget all pages behind the first `closed`."""
        self.pages = {name: pages[:, :, :closed] for name, pages in self.pages.items() if closed}

    def keys_from(self, first: int, length: int, step: Step) -> Tensor:
        """The keys of the slots from `first` on that are summarised, for pages that are made anew."""
        return step.cache.until(length).since(first)

    def reorder(self, rows: Tensor) -> None:
        self.pages = {name: pages[rows] for name, pages in self.pages.items()}

    def fork(self) -> Index:
        self.growing = {}
        return replace(self, pages=dict(self.pages), growing={})

    def score(self, queries: Tensor, step: Step) -> Tensor:
        return self._of_slots(self._scores(queries, self.pages, step), self.slots, step)

    def visible_scores(self, queries: Tensor, step: Step) -> Tensor:
        scores = self._scores(queries, self._roomy(), step)
        room = min(step.slots(self.slots), scores.shape[-1] * self.recipe.page_size)
        scores = self._of_slots(scores, room, step)
        visible = step.visible(room, 1, queries.device)
        assert visible is not None
        return scores.masked_fill(~visible, -torch.inf)

    def bytes_per_key(self, step: Step) -> float:
        # A page that is part full is read whole.
        slots, size = max(step.slots(self.slots), 1), self.recipe.page_size
        return self._page_bytes * math.ceil(slots / size) / slots

    @property
    def _page_bytes(self) -> int:
        return bytes_of_page(self.pages)

    def select(self, queries: Tensor, k: int, step: Step) -> Selection:
        # A page larger than all that is there is one of just that size.
        length = step.slots(self.slots)
        size = min(self.recipe.page_size, max(length, 1))
        seen_by: dict[str, Any] = {"page_size": size, "start": step.start}
        if step.at is not None:
            scores = self._scores(queries, self._roomy(), step)
            how: dict[str, Any] = {"check": step.checks, "backend": step.backend}
            assert step.stop is not None
            slots = select_pages(scores, min(k, length), stop=step.stop, **seen_by, **how)
            return Selection(slots, **self._cost(queries, length, size, step))
        scores = self._scores(queries, self.pages, step)
        stop = step.stops(length, queries.shape[2], queries.device).clamp_max(length)
        chosen = select_pages(scores, min(k, length), stop=stop, **seen_by, backend="torch")
        return Selection(chosen, **self._cost(queries, length, size, step))

    def _cost(self, queries: Tensor, length: int, size: int, step: Step) -> dict[str, Any]:
        """What scoring the pages of so many slots costs, where it is counted."""
        if not step.counted:
            return {}
        seen = (step.seen(length, queries.shape[2], queries.device) + size - 1) // size
        return {"keys_scored": seen, "bytes_read": seen * self._page_bytes}

    def select_many(self, queries: Tensor, ks: Sequence[int], step: Step) -> dict[int, Selection]:
        return cut_each(self.select(queries, max(ks), step), ks)

    def _scores(self, queries: Tensor, pages: Pages, step: Step) -> Tensor:
        """Scores of pages [B, Hs, Tq, P], -inf where a query sees none of their keys."""
        count, device = queries.shape[2], queries.device
        if step.stop is None:
            step = replace(step, stop=step.stops(self.slots, count, device))
        scores = self.of_pages(queries, pages, step)
        if self.recipe.current_first:
            seen = step.seen(step.slots(self.slots), count, device)[:, None, :, None]
            first = torch.arange(scores.shape[-1], device=device) * self.recipe.page_size
            current = (first < seen) & (first + self.recipe.page_size >= seen)
            scores = above(scores.amax(-1, keepdim=True)).where(current, scores)
        return scores

    def of_pages(self, queries: Tensor, pages: Pages, step: Step) -> Tensor:
        """The recipe's scores of these pages and those before them, -inf where a query sees no key of one."""
        return self.recipe.visible_scores(queries, pages, step)

    def _of_slots(self, scores: Tensor, length: int, step: Step) -> Tensor:
        """Scores [B, Hs, Tq, P] of pages as those of the first `length` slots."""
        slots = torch.arange(length, device=scores.device)
        page = (slots - step.starts(scores.device)[:, None]).clamp_min(0) // self.recipe.page_size
        return scores.gather(-1, page[:, None, None].expand(*scores.shape[:3], -1))

    def _append(self, keys: Tensor, step: Step, closed: int) -> None:
        """Add keys behind those that are there, to pages behind the first `closed`."""
        size, count = self.recipe.page_size, keys.shape[2]
        if count == 0:
            return
        after = math.ceil((self.slots + count) / size)
        reached = after - self.slots // size
        if step.start is not None:
            # Where a row stands in its page is known to the device alone: it may reach one page more.
            reached = min((count + size - 2) // size + 1, after)
        start = step.starts(keys.device)[:, None]
        first = (self.slots - start).div(size, rounding_mode="floor").clamp_min(closed)
        page = first + torch.arange(reached, device=keys.device)
        begin = page * size + start - self.slots
        new = self.summaries(keys.detach(), begin)
        page, after = page - self.before, after - self.before
        if self.pages:
            # What a padded row does not reach is written behind the last page.
            room = after + (step.start is not None)
            new = self._joined(new, page.clamp_max(after), begin >= 0, room)
        self.pages = {name: pages[:, :, :after] for name, pages in new.items()}
        self.slots += count

    def summaries(self, keys: Tensor, begin: Tensor) -> Pages:
        """Summaries of the pages that begin at keys of `begin` [B or 1, P], of keys behind `slots`."""
        return summarised(self.recipe, *by_page(keys, begin, self.recipe.page_size))

    def _joined(self, new: Pages, page: Tensor, fresh: Tensor, room: int) -> Pages:
        """`room` summaries, with those of new keys joined to their pages, or alone in fresh ones."""
        grown: Pages = {}
        for name, pages in self.pages.items():
            multiple = math.ceil(ROUND / self.recipe.page_size)
            growing = self.growing.setdefault(name, Growing(multiple=multiple))
            # One page more is there than is written, for a step of fixed shapes.
            grown[name] = growing.extended(pages, pages, room + 1 - pages.shape[2])
        page, fresh = page[:, None, :, None], fresh[:, None, :, None]
        at = {name: page.expand_as(pages) for name, pages in new.items()}
        old = {name: pages.gather(2, at[name]) for name, pages in grown.items()}
        for name, pages in self.recipe.join(old, new).items():
            grown[name].scatter_(2, at[name], new[name].where(fresh, pages))
        return grown
