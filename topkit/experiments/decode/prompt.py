"""Which tokens of a call are of the prompt: inside `generate` by their slots, else by their number."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor


class Prompt(threading.local):
    """The prompt of `generate` while it runs; each thread has its own."""

    def __init__(self) -> None:
        self.length: int | None = None

    @contextmanager
    def of(self, inputs: Any, kwargs: Mapping[str, Any]) -> Iterator[None]:
        """The prompt is that of a call of `generate` in here."""
        outer, self.length = self.length, _length(inputs, kwargs)
        try:
            yield
        finally:
            self.length = outer

    def tokens(self, before: int, count: int) -> int:
        """How many of `count` tokens behind `before` slots are of the prompt."""
        if self.length is not None:
            return min(max(self.length - before, 0), count)
        return count if count > 1 or before == 0 else 0


def _length(inputs: Any, kwargs: Mapping[str, Any]) -> int:
    """Slots that a call of generate starts from: its mask spans them where its tokens do not."""
    names = ("inputs", "input_ids", "inputs_embeds", "attention_mask")
    prompts = (inputs, *(kwargs.get(name) for name in names))
    return max((x.shape[1] for x in prompts if isinstance(x, Tensor)), default=1)
