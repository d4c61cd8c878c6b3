# pyright: strict
"""Slots of a paged cache: from physical ids, through the block table, to places in the row."""

from __future__ import annotations

import torch
from torch import Tensor

from topkit.assertions.arrays import Array, places
from topkit.assertions.listed import NOWHERE
from topkit.errors import InputError
from topkit.kernels import checks


def logical(
    indices: Tensor, block_table: Array | None, page_size: object, ends: Tensor
) -> tuple[Tensor, int | None]:
    """The slots of rows that physical ids stand for, and the page size; the ids themselves without a table.

    An id is page * page_size + place in the page; -1 stands for none, and one that lies in no page of its row
    becomes NOWHERE.
    Shapes: indices [B, ..., w]; block_table [B, pages], the physical page of each page of a row in order; ends
    [B], how many slots of each row are in use: what stands behind their pages is not read.
    Raises: InputError for a table of another shape, pages that are repeated or missing, and sizes that cannot be.
    """
    if block_table is None and page_size is None:
        return indices, None
    if block_table is None or page_size is None:
        raise InputError("block_table and page_size come together; got one of them")
    size = checks.at_least_one("page_size", page_size)
    table = places(block_table, "block_table").to(indices.device)
    if table.dim() != 2 or len(table) != len(ends):
        raise InputError(
            f"block_table must be [{len(ends)}, pages], a line for each row; got {list(table.shape)}"
        )
    used = -(-ends.to(table.device) // size)
    _check(table, used, size)
    if table.shape[1] == 0:
        table = table.new_full((len(table), 1), -1)
    # Pages that are not in use stand behind all others.
    never = torch.iinfo(torch.int64).max
    unused = torch.arange(table.shape[1], device=table.device) >= used[:, None]
    ordered, order = table.masked_fill(unused, never).sort(-1)
    flat = indices.long().reshape(len(ends), -1)
    page = flat.div(size, rounding_mode="floor")
    at = torch.searchsorted(ordered, page).clamp_max(table.shape[1] - 1)
    here = ordered.gather(1, at) == page
    slots = order.gather(1, at) * size + flat % size
    slots = slots.where(here, torch.full_like(slots, NOWHERE)).masked_fill(flat == -1, -1)
    return slots.view(indices.shape), size


def _check(table: Tensor, used: Tensor, size: int) -> None:
    """Require as many pages as are in use, each once in its row."""
    if int(used.max()) > table.shape[1]:
        row = int(used.argmax())
        raise InputError(
            f"block_table has {table.shape[1]} pages of {size} a row; row {row} wants {int(used[row])}"
        )
    for row, count in enumerate(map(int, used)):
        own = table[row, :count].sort().values
        if bool((own < 0).any()):
            at = int((table[row] < 0).nonzero()[0])
            raise InputError(
                f"block_table row {row} lacks page {at} of the {count} in use; it says {int(own[0])}"
            )
        twice = own[1:][own[1:] == own[:-1]]
        if len(twice):
            raise InputError(
                f"block_table row {row} has page {int(twice[0])} more than once: its ids would stand for several slots"
            )
