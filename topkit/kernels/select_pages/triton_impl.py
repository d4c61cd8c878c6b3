"""The keys of the best pages, in Triton: Top-k of pages, then one launch that writes their keys."""

# A kernel's values are not what Python, and pyright, take them for.
# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from topkit.kernels.backend import has_pdl
from topkit.kernels.pdl import wait_then_launch
from topkit.kernels.score.triton_impl import seen, window
from topkit.kernels.select_topk.triton_impl import UNRANKED, select_topk

# Keys that a program writes at a time.
BLOCK = 1024


def select_pages(
    scores: Tensor, k: int, pages: int, page_size: int, start: Tensor | None, stop: Tensor
) -> tuple[Tensor, Tensor]:
    """As the reference's, of checked arguments, and which lists met NaN; those are all -1."""
    rows, heads, count, _ = scores.shape
    ranked, nan = select_topk(scores.reshape(-1, scores.shape[3]), pages, None, ranked=True)
    slots = scores.new_empty(rows, heads, count, k, dtype=torch.int64)
    with torch.cuda.device_of(scores):  # Triton launches on the current device
        _write[(rows * heads * count,)](
            ranked, slots, *window(start, stop), pages, k, page_size, heads, count,
            max(triton.next_power_of_2(pages), 2), triton.next_power_of_2(page_size), BLOCK,
            num_warps=4, launch_pdl=has_pdl(scores.device),
        )  # fmt: skip
    return slots, nan.view(rows, heads, count)


@triton.jit
def _write(
    ranked, slots, start, stop, pages, k, page_size, heads, count,
    PAGES: tl.constexpr, SIZE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    wait_then_launch()
    at = tl.program_id(0)
    first, end = seen(start, stop, at // count // heads, at % count, 2147483647)
    n, i = tl.arange(0, PAGES), tl.arange(0, SIZE)
    x = tl.load(ranked + at.to(tl.int64) * pages + n, mask=n < pages, other=UNRANKED)
    x = tl.sort(x)
    begin = first + (x & 0xFFFFFFFF).to(tl.int32) * page_size
    full = tl.where(x != UNRANKED, tl.minimum(end - begin, page_size), 0)
    before = tl.cumsum(full, 0) - full
    place = before[:, None] + i[None, :]
    slot = (begin + full - 1)[:, None] - i[None, :]
    slots += at.to(tl.int64) * k
    tl.store(slots + place, slot.to(tl.int64), mask=(i[None, :] < full[:, None]) & (place < k))
    for left in range(tl.sum(full), k, BLOCK):
        unused = left + tl.arange(0, BLOCK)
        tl.store(slots + unused, tl.full([BLOCK], -1, tl.int64), mask=unused < k)
