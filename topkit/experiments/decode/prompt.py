"""Which tokens of a call attend densely: those before a slot, those of `generate`'s prompt, or several at once."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from topkit.documents import quote
from topkit.errors import InputError
from topkit.indexers.budget import MOST

# The slot from which queries are sparse: one for all rows, or one a row [B].
Slot = int | Tensor | None


class Prompt(threading.local):
    """The prompt of `generate` while it runs, or the slot that it ends at; each thread has its own."""

    def __init__(self, slot: Slot = None) -> None:
        self.length: int | None = None
        self.slot = slot

    @contextmanager
    def of(self, length: int) -> Iterator[None]:
        """In here the prompt has `length` slots, as in a call of `generate`."""
        outer, self.length = self.length, length
        try:
            yield
        finally:
            self.length = outer

    @contextmanager
    def until(self, slot: Slot) -> Iterator[None]:
        """In here the prompt ends at a slot."""
        outer, self.slot = self.slot, slot
        try:
            yield
        finally:
            self.slot = outer

    @property
    def stop(self) -> int | None:
        """The slot from which every row of `generate` is behind its prompt; None outside of it."""
        if self.length is None or self.slot is None:
            return self.length
        return max(self.length, int(torch.as_tensor(self.slot).max()))

    def tokens(self, before: int, count: int) -> int:
        """How many of `count` tokens behind `before` slots are of the prompt, in all rows."""
        if self.slot is not None:
            first = self.slot if isinstance(self.slot, int) else int(self.slot.min())
            return min(max(first - before, 0), count)
        if self.length is not None:
            return min(max(self.length - before, 0), count)
        return count if count > 1 or before == 0 else 0

    def rows(self, before: int, count: int, batch: int) -> Tensor | None:
        """Which tokens are of their row's prompt [B, count]; None where all rows are alike.

        Raises: InputError where there are other rows than slots.
        """
        if self.slot is None or isinstance(self.slot, int):
            return None
        if len(self.slot) != batch:
            raise InputError(
                f"sparse_from_slot has {len(self.slot)} slots, one a row, and the call {batch} rows"
            )
        slots = torch.arange(before, before + count)
        inside = slots < self.slot[:, None]
        return None if (inside == inside[:1]).all() else inside


def parse_slot(slot: Any) -> Slot:
    """Read a slot, or one a row, also of numpy and torch.

    Raises: InputError for anything else.
    """
    if slot is None:
        return None
    plain = _plain(slot)
    one = not isinstance(plain, list | tuple | range)
    several = [plain] if one else [_plain(x) for x in plain]
    whole = all(type(x) is int and x >= 0 for x in several)
    if not several or not whole:
        raise InputError(
            "sparse_from_slot must be a slot of at least 0, or a list of one a row; "
            f"got {quote(slot)}"
        )
    several = [min(x, MOST) for x in several]  # behind any context
    return several[0] if one else torch.tensor(several)


def _plain(x: Any) -> Any:
    """Numbers of numpy and torch as Python's."""
    return x.tolist() if hasattr(x, "tolist") else x


def length_of(inputs: Any, kwargs: Mapping[str, Any]) -> int:
    """The slots of the prompt of a call of generate; its mask is longer than its tokens behind a cache."""
    names = ("inputs", "input_ids", "inputs_embeds", "attention_mask")
    prompts = (inputs, *(kwargs.get(name) for name in names))
    return max((x.shape[1] for x in prompts if isinstance(x, Tensor)), default=1)
