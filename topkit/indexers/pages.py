# pyright: strict
"""Pages of keys: how a recipe summarises, joins and scores them, and what is required of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from topkit.errors import InputError
from topkit.indexers.base import Indexer, Step
from topkit.indexers.checks import whole

Pages = dict[str, Tensor]

_MARGIN = 2**-16  # relative: 256 roundings of float32


@dataclass(frozen=True)
class PageRecipe(Indexer):
    """The functions of a recipe that judges pages; `Paged` makes a family of them."""

    page_size: int = 16

    # The page that a query stands in comes first, just above the best of the others.
    current_first: ClassVar[bool] = False

    def __post_init__(self) -> None:
        whole(self, "page_size", 1)

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
        for name, new in summarised(self, own, real).items():
            pages[name].scatter_(2, first[:, None, None, None].expand_as(new), new)

    def visible_scores(self, queries: Tensor, pages: Pages, step: Step) -> Tensor:
        """`score` [B, Hs, Tq, P] in float32, -inf where a query sees no key of a page."""
        return unseen(scored(self, queries, pages, step), self.page_size, step)


def summarised(recipe: PageRecipe, keys: Tensor, real: Tensor) -> Pages:
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


def scored(recipe: PageRecipe, queries: Tensor, pages: Pages, step: Step) -> Tensor:
    """The scores [B, Hs, Tq, P] of a recipe. Raises: InputError where they are not one a page."""
    scores = recipe.score(queries, pages, step)
    rows, tokens, count = queries.shape[0], queries.shape[2], next(iter(pages.values())).shape[2]
    if scores.dim() != 4 or (scores.shape[0], *scores.shape[2:]) != (rows, tokens, count):
        raise InputError(
            f"{type(recipe).__name__}: score gave {list(scores.shape)} for {tokens} queries and {count} "
            f"pages in {rows} rows; expected one score a page, [{rows}, H, {tokens}, {count}]"
        )
    return scores


def unseen(scores: Tensor, size: int, step: Step) -> Tensor:
    """Scores [B, Hs, Tq, P] of pages of so many keys, -inf where a query, whose `stop` is known, sees none of one."""
    device = scores.device
    first = torch.arange(scores.shape[-1], device=device) * size
    seen = step.stops(0, scores.shape[2], device) - step.starts(device)[:, None]
    return scores.masked_fill(first >= seen[:, None, :, None], -torch.inf)


def by_page(keys: Tensor, begin: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Keys [B, Hk, t, D] in pages of which each begins at its key of `begin` [B or 1, P], and which are.

    Shapes: -> [B, Hk, P, size, D], [B, 1, P, size, 1].
    """
    rows, heads, count, width = keys.shape
    at = begin[..., None] + torch.arange(size, device=keys.device)
    real = ((at >= 0) & (at < count)).expand(rows, -1, -1)
    at = at.clamp(0, count - 1).flatten(1)[:, None, :, None].expand(rows, heads, -1, width)
    return keys.gather(2, at).view(rows, heads, -1, size, width), real[:, None, ..., None]


def bytes_of_page(pages: Pages) -> int:
    """Bytes of one page's summaries, over all heads of the layer."""
    return sum(x[0, :, 0].numel() * x.element_size() for x in pages.values())


def above(best: Tensor) -> Tensor:
    """Scores just above the best, by more than a sum over heads or a softmax rounds away."""
    next_best = best.nextafter(torch.full_like(best, torch.inf))
    return next_best.fmax(best + best.abs() * _MARGIN)  # NaN where the best is -inf
