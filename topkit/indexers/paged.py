# pyright: strict
"""The family "judge pages of keys by a summary, keep whole pages"."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from topkit.errors import InputError
from topkit.indexers.base import Index, Indexer, Selection, Step
from topkit.indexers.checks import whole
from topkit.indexers.growing import ROUND, Growing
from topkit.indexers.scored import cut_each
from topkit.indexers.stated_cost import Cost, Shape
from topkit.indexers.traits import Traits
from topkit.kernels.select_pages import select_pages

Pages = dict[str, Tensor]

_MARGIN = 2**-16  # relative: 256 roundings of float32


@dataclass(frozen=True)
class Paged(Indexer):
    """A recipe that writes how a page of keys is summarised and how summaries are scored.

    Pages count from each row's first real key. The last page that k reaches is cut to its newest keys.
    """

    page_size: int = 16

    family: ClassVar[str] = "pages"
    tuned: ClassVar[Mapping[str, Sequence[Any]]] = {"page_size": range(1, 1025)}
    # The page that a query stands in comes first, just above the best of the others.
    current_first: ClassVar[bool] = False
    # Dot products that score a page.
    products: ClassVar[int] = 1

    def __post_init__(self) -> None:
        whole(self, "page_size", 1)

    def traits(self) -> Traits:
        # A summary has seen every key of its page, and a page that is cut is made anew from the cache.
        return Traits(needs=frozenset({"cache"}), causal_codes=False, score_all=True, fixed=True)

    def summary_bytes(self, shape: Shape) -> float:
        """Bytes of one page's summary, over all heads of the layer."""
        raise InputError(f"{self} does not state what it costs: it has no `summary_bytes`")

    def costs(self, shape: Shape) -> Cost:
        s, summary = shape, self.summary_bytes(shape)
        pages = math.ceil(s.T / self.page_size)
        return Cost(
            index=summary * pages / s.T,
            read=summary * pages,
            operations=self.products * s.Hq * pages * s.D,
            build=s.Hk * s.T * s.D,
            append=s.Hk * s.D,
            lists=s.Hq,
            kept=s.kept,
        )

    def summarise(self, keys: Tensor, real: Tensor) -> Pages:
        """Summaries of pages of keys [B, Hk, P, size, D]: named tensors [B, Hk or 1, P, W].

        real [B, 1, P, size, 1] says which keys are there. A page without any is never read.
        """
        raise NotImplementedError(f"{type(self).__name__}.summarise")

    def join(self, a: Pages, b: Pages) -> Pages:
        """Summaries of the keys of `a` and of `b` together, page by page."""
        raise NotImplementedError(f"{type(self).__name__}.join")

    def score(self, queries: Tensor, pages: Pages, step: Step) -> Tensor:
        """Scores [B, Hs, Tq, P] of all pages for queries [B, Hq, Tq, D], float32."""
        raise NotImplementedError(f"{type(self).__name__}.score")

    def write(self, pages: Pages, keys: Tensor, step: Step) -> None:
        """Summarise anew, at a step of fixed shapes, the page that the slot `step.at` stands in.

        Shapes: keys [B, Hk, room, D], of all slots; pages, all that there is room for, written in place.
        """
        assert step.at is not None
        start = step.starts(keys.device)
        first = (step.at - start).clamp_min(0) // self.page_size  # of rows that begin later, too
        begin = (first * self.page_size + start)[:, None]
        own, real = by_page(keys.detach(), begin, self.page_size)
        place = begin[..., None] + torch.arange(self.page_size, device=keys.device)
        real = real & (place <= step.at)[:, None, ..., None]
        for name, new in _summarised(self, own, real).items():
            pages[name].scatter_(2, first[:, None, None, None].expand_as(new), new)

    def visible_scores(self, queries: Tensor, pages: Pages, step: Step) -> Tensor:
        """`score` [B, Hs, Tq, P] in float32, -inf where a query sees no key of a page."""
        scores = _scored(self, queries, pages, step)
        count, device = queries.shape[2], queries.device
        first = torch.arange(scores.shape[-1], device=device) * self.page_size
        seen = step.stops(0, count, device) - step.starts(device)[:, None]
        return scores.masked_fill(first >= seen[:, None, :, None], -torch.inf)

    def build(self, keys: Tensor, step: Step) -> Index:
        index = PagedIndex(self)
        index.append(keys, step)
        return index


@dataclass
class PagedIndex(Index):
    """A summary of every page, in buffers of its own.

    Only pages that new keys fall into are written. An index that shares its buffers, forked, or begins
    a page moves to new ones.
    """

    recipe: Paged
    pages: Pages = field(default_factory=Pages)
    slots: int = 0
    growing: dict[str, Growing] = field(default_factory=dict[str, Growing])
    # Whether the newest page was summarised with a key that does not show.
    ahead: bool = False

    @property
    def length(self) -> int:
        return self.slots

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
        rows = next(iter(self.pages.values())).shape[0]
        self.pages = {name: pages[:, :, :closed] for name, pages in self.pages.items() if closed}
        self.slots = int(start.min()) + closed * self.recipe.page_size if closed else 0
        keys = self.keys_from(self.slots, length, step)
        self._append(keys.expand(rows, -1, -1, -1), step, closed)

    def keys_from(self, first: int, length: int, step: Step) -> Tensor:
        """The keys of the slots from `first` on that are summarised, for pages that are made anew."""
        return step.cache.keys[:, :, first:length]

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
        each = (pages[0, :, 0].numel() * pages.element_size() for pages in self.pages.values())
        return sum(each)

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
        scores = self.recipe.visible_scores(queries, pages, step)
        if self.recipe.current_first:
            seen = step.seen(step.slots(self.slots), count, device)[:, None, :, None]
            first = torch.arange(scores.shape[-1], device=device) * self.recipe.page_size
            current = (first < seen) & (first + self.recipe.page_size >= seen)
            scores = _above(scores.amax(-1, keepdim=True)).where(current, scores)
        return scores

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
        if self.pages:
            # What a padded row does not reach is written behind the last page.
            room = after + (step.start is not None)
            new = self._joined(new, page.clamp_max(after), begin >= 0, room)
        self.pages = {name: pages[:, :, :after] for name, pages in new.items()}
        self.slots += count

    def summaries(self, keys: Tensor, begin: Tensor) -> Pages:
        """Summaries of the pages that begin at keys of `begin` [B or 1, P], of keys behind `slots`."""
        return _summarised(self.recipe, *by_page(keys, begin, self.recipe.page_size))

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


def _above(best: Tensor) -> Tensor:
    """Scores just above the best, by more than a sum over heads or a softmax rounds away."""
    next_best = best.nextafter(torch.full_like(best, torch.inf))
    return next_best.fmax(best + best.abs() * _MARGIN)  # NaN where the best is -inf


def _summarised(recipe: Paged, keys: Tensor, real: Tensor) -> Pages:
    """The recipe's summaries, required to be one a page."""
    pages = recipe.summarise(keys, real)
    rows, count = keys.shape[0], keys.shape[2]
    for name, page in pages.items():
        if page.dim() != 4 or (page.shape[0], page.shape[2]) != (rows, count):
            raise InputError(
                f"{type(recipe).__name__}: summarise gave {name!r} {list(page.shape)} for {count} "
                f"pages in {rows} rows; expected one summary a page, [{rows}, H, {count}, W]"
            )
    return pages


def _scored(recipe: Paged, queries: Tensor, pages: Pages, step: Step) -> Tensor:
    """The scores [B, Hs, Tq, P] of a recipe. Raises: InputError where they are not one a page."""
    scores = recipe.score(queries, pages, step)
    rows, asked, count = queries.shape[0], queries.shape[2], next(iter(pages.values())).shape[2]
    if scores.dim() != 4 or (scores.shape[0], *scores.shape[2:]) != (rows, asked, count):
        raise InputError(
            f"{type(recipe).__name__}: score gave {list(scores.shape)} for {asked} queries and {count} "
            f"pages in {rows} rows; expected one score a page, [{rows}, H, {asked}, {count}]"
        )
    return scores


def by_page(keys: Tensor, begin: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Keys [B, Hk, t, D] in pages of which each begins at its key of `begin` [B or 1, P], and which are.

    Shapes: -> [B, Hk, P, size, D], [B, 1, P, size, 1].
    """
    rows, heads, count, width = keys.shape
    at = begin[..., None] + torch.arange(size, device=keys.device)
    real = ((at >= 0) & (at < count)).expand(rows, -1, -1)
    at = at.clamp(0, count - 1).flatten(1)[:, None, :, None].expand(rows, heads, -1, width)
    return keys.gather(2, at).view(rows, heads, -1, size, width), real[:, None, ..., None]
