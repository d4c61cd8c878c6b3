"""The keys of the best pages."""

# pyright: strict

from __future__ import annotations

import math

import torch
from torch import Tensor

from topkit.kernels import checks
from topkit.kernels.backend import resolve
from topkit.kernels.score.boundary import check_window
from topkit.kernels.select_pages import reference
from topkit.kernels.select_topk import require_numbers, unsupported

__all__ = ["select_pages"]

# What the Triton kernel takes.
LARGEST_PAGE, MOST_KEYS = 128, 1 << 14


def select_pages(
    scores: Tensor,
    k: int,
    *,
    page_size: int,
    start: Tensor | None = None,
    stop: Tensor,
    check: bool = True,
    backend: str = "auto",
) -> Tensor:
    """The slots of the best pages, page by page, the newest first of each; the last is cut where k ends.

    Shapes: scores [B, Hs, Tq, P] float32, -inf where a query sees no key of a page; start [B], where each
    row's first page begins; stop [B or 1, Tq] -> [B, Hs, Tq, k] int64, -1 last. `check` as `select_topk`.
    Raises: InputError for k < 1, for NaN, and where shapes, dtypes or devices do not belong together.
    """
    checks.tensors(scores=scores, stop=stop)
    k = checks.at_least_one("k", k)
    checks.dims("scores", scores, 4)
    checks.typed("scores", scores, (torch.float32,))
    check_window(start, stop, scores)
    # The newest page may be part full, so that k keys can need one page more.
    pages = min(math.ceil(k / page_size) + 1, scores.shape[3])
    own = unsupported(scores, pages) or _unsupported(page_size, pages)
    if resolve(backend, scores, own) == "torch" or scores.numel() == 0:
        return reference.select_pages(scores, k, pages, page_size, start, stop, check)
    from topkit.kernels.select_pages import triton_impl

    slots, nan = triton_impl.select_pages(scores, k, pages, page_size, start, stop)
    if check:
        require_numbers(nan)
    return slots


def _unsupported(page_size: int, pages: int) -> str | None:
    """What the kernel does not take, as a sentence."""
    if page_size > LARGEST_PAGE:
        return f"page_size must be at most {LARGEST_PAGE}; got {page_size}"
    if pages * page_size > MOST_KEYS:
        return f"k must be at most {MOST_KEYS - page_size} keys of pages; got {pages * page_size}"
    return None
