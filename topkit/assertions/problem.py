# pyright: strict
"""The rows that a kernel's output is judged by, of scores or of queries and keys."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from topkit.assertions import exact
from topkit.assertions.arrays import Array
from topkit.assertions.demand import Demand
from topkit.assertions.exact import NEVER, Exact
from topkit.assertions.listed import Listed
from topkit.assertions.pages import logical
from topkit.assertions.verdict import Part
from topkit.assertions.window import Window, of_attention, of_queries, of_rows
from topkit.errors import InputError


@dataclass(frozen=True)
class Problem:
    """What is known beside the list: scores, or queries and keys, and what each row sees of them.

    Shapes: scores [..., T]; queries [B, Hq, Tq, D]; keys [B or 1, Hk, T, D]; the rest as `assert_selects` has it.
    """

    scores: Tensor | None
    queries: Tensor | None
    keys: Tensor | None
    lengths: Array | int | None = None
    start: Array | None = None
    stop: Array | None = None
    block_table: Array | None = None
    page_size: object = None

    def parts(self, picked: Tensor, demand: Demand, block: int) -> Iterator[Part]:
        """The rows of indices [..., w], as one part. Raises: InputError for shapes that do not fit."""
        if self.scores is not None:
            rows, ends = self._of_scores(self.scores, demand, block)
        else:
            queries, keys = self._both()
            seen = of_attention(queries, keys, self.lengths, self.start, self.stop)
            lists = picked.shape[1:2].numel()
            rows, ends = exact.of_attention(queries, keys, lists, demand, seen, block), seen.ends
        if picked.shape[:-1] != rows.shape or rows.shape.numel() == 0:
            raise InputError(
                f"indices {list(picked.shape)} must be {[*rows.shape, 'k']} beside these scores, "
                "and hold at least one row"
            )
        slots, size = logical(picked.long(), self.block_table, self.page_size, ends)
        width = picked.shape[-1]
        listed = Listed(slots.reshape(-1, width), picked.long().reshape(-1, width), size)
        yield Part(listed, rows, lambda row: _unravelled(row, rows), len(rows.shape))

    def _both(self) -> tuple[Tensor, Tensor]:
        if self.queries is None or self.keys is None:
            raise InputError("expected scores, or queries and keys")
        return self.queries, self.keys

    def _of_scores(self, scores: Tensor, demand: Demand, block: int) -> tuple[Exact, Tensor]:
        """The rows, and how many slots each of the first dimension has in use."""
        if self.queries is not None or self.keys is not None:
            raise InputError(
                "scores say by -inf or lengths what is not visible: give them alone, or else queries and keys"
            )
        length = scores.shape[-1] if scores.dim() else 0
        if length == 0:
            raise InputError(f"scores must be [..., T], T at least 1; got {list(scores.shape)}")
        shape = scores.shape[:-1]
        batch = shape[0] if shape else 1
        if all(x is None for x in (self.lengths, self.start, self.stop)):
            seen = (scores > NEVER) | scores.isnan()
            ends = (seen * torch.arange(1, length + 1, device=seen.device)).amax(-1)
            ends = ends.reshape(batch, shape[1:].numel())
            ends = ends.amax(1) if ends.numel() else ends.new_zeros(batch)
            return exact.of_scores(scores, demand, None, block), ends
        seen = self._window(shape, length)
        ends = seen.stop.reshape(batch, shape[1:].numel()).amax(1)
        return exact.of_scores(scores, demand, seen, block), ends

    def _window(self, shape: torch.Size, length: int) -> Window:
        """What rows of scores see, in their shape."""
        if len(shape) == 3:
            batch, _, count = shape
            seen = of_queries(batch, count, length, self.lengths, self.start, self.stop)
            start, stop = seen.start[:, None, None], seen.stop[:, None]
            return Window(start.expand(shape), stop.expand(shape))
        if self.lengths is None or self.start is not None or self.stop is not None:
            raise InputError(
                "start and stop go with scores [B, Hs, Tq, T]: give lengths, one a row, or -inf"
            )
        ends = of_rows(shape, length, self.lengths)
        return Window(torch.zeros_like(ends), ends)


def _unravelled(row: int, rows: Exact) -> dict[str, int]:
    place = np.unravel_index(row, rows.shape)
    return dict(zip(rows.axes, map(int, place), strict=True))
