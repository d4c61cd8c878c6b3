"""One layer's buffers at fixed shapes: what rows attend to, what they choose, and what is judged of it."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from topkit.experiments.evaluate.streams import Prefix
from topkit.indexers.base import Cache, Index
from topkit.kernels.cache_append import cache_append
from topkit.kernels.gather_attention import Softmax, attend, gathered
from topkit.kernels.rounding import norms


@dataclass
class Layer:
    """Keys and values of all room; the lists of one step; and, by name, what the last steps noted.

    Shapes: keys [R, Hk, room, D], values alike, norms [R, Hk, room]; slots and logs [R, Hq, 1, w], a list for
    every query head; noted [N, R, ...]. Of each group of rows: its index, how many lists its heads share,
    and whether they are weighted, known from the first step on.
    """

    keys: Tensor
    values: Tensor
    norms: Tensor
    slots: Tensor
    logs: Tensor
    noted: dict[str, Tensor]
    scaling: float
    window: int | None
    softmax: Softmax
    indices: dict[int, Index] = field(default_factory=dict)
    units: dict[int, int] = field(default_factory=dict)
    weighted: dict[int, bool] = field(default_factory=dict)

    @classmethod
    def of(cls, past: Prefix, rows: int, room: int, wide: int, steps: int) -> Layer:
        """A layer for so many rows and slots, with lists of so many, and notes of so many steps."""
        keys, values, heads = past.cache.keys, past.cache.values, past.heads
        assert values is not None
        device, (_, groups, _, width) = keys.device, keys.shape
        return cls(
            # Of zeros: what is not seen has a weight of zero, which infinity would show through.
            keys.new_zeros(rows, groups, room, width),
            values.new_zeros(rows, groups, room, values.shape[3]),
            torch.zeros(rows, groups, room, device=device),
            torch.full((rows, heads, 1, wide), -1, device=device),
            torch.zeros(rows, heads, 1, wide, device=device),
            {
                "queries": keys.new_zeros(steps, rows, heads, width),
                "slots": torch.full(
                    (steps, rows, heads, wide), -1, dtype=torch.int32, device=device
                ),
                "logs": torch.zeros(steps, rows, heads, wide, device=device),
                "costs": torch.zeros(steps, 2, rows, device=device),
                "output": torch.zeros(steps, rows, heads, values.shape[3], device=device),
            },
            past.scaling,
            past.window,
            past.softmax,
        )

    @property
    def room(self) -> int:
        return self.keys.shape[2]

    @property
    def dense(self) -> bool:
        """Whether a sliding window already selects this layer's keys."""
        return self.window is not None and self.window < self.room

    def begin(self, past: Prefix) -> None:
        """Write a haystack to all rows."""
        assert past.cache.values is not None
        self.keys[:, :, : past.length] = past.cache.keys
        self.values[:, :, : past.length] = past.cache.values
        self.norms[:, :, : past.length] = past.norms

    def until(self, stop: int, rows: slice | Tensor) -> Cache:
        """The slots before `stop` of some rows."""
        return Cache(self.keys[rows, :, :stop], self.values[rows, :, :stop])

    def append(self, keys: Tensor, values: Tensor, at: Tensor) -> None:
        """Write the keys and values [R, Hk, 1, D] of a step at a slot [1]."""
        cache_append(self.keys, self.values, keys.contiguous(), values.contiguous(), at)
        self.norms.index_copy_(2, at, norms(keys))

    def attend_all(self, scores: Tensor, rows: slice, stop: Tensor) -> Tensor:
        """Attention [b, Hq, 1, Dv] of some rows over all that they see before `stop` [1, 1], in float32."""
        logits, values = self.softmax.capped(self.scaling * scores[rows]), self.values[rows]
        if self.dense:
            assert self.window is not None
            slots = torch.arange(self.room, device=scores.device)
            logits = logits.masked_fill(slots < stop - self.window, -torch.inf)
        weights = (
            self.softmax.weights_of_seen(logits).unflatten(1, (values.shape[1], -1)).flatten(2, 3)
        )
        return (weights @ values.float()).view(*logits.shape[:3], values.shape[3])

    def attend_lists(self, scores: Tensor, first: int) -> Tensor:
        """Attention [R - first, Hq, 1, Dv] of the rows from `first` on over their lists, in float32."""
        slots, values = self.slots[first:], self.values[first:]
        chosen = scores[first:].gather(-1, slots.clamp_min(0)).masked_fill_(slots < 0, -torch.inf)
        logs = self.logs[first:] if any(self.weighted.values()) else None

        def weigh(weights: Tensor, picked: Tensor) -> Tensor:
            return weights @ gathered(values, picked)

        return attend(
            chosen,
            weigh,
            slots,
            scaling=self.scaling,
            log_weights=logs,
            softmax=self.softmax,
        )

    def put(self, rows: slice, slots: Tensor, logs: Tensor | None) -> None:
        """Write the lists [b, Hs, 1, n] of some rows, one for several heads, to those of each head."""
        for into, lists in ((self.slots, slots), (self.logs, logs)):
            if lists is not None:
                by_unit = into[rows].unflatten(1, (lists.shape[1], -1))
                by_unit[..., : lists.shape[-1]] = lists[:, :, None]

    def note(self, place: Tensor, **now: Tensor) -> None:
        """Keep what is judged of a step, at its place [1]."""
        for name, x in {**now, "slots": self.slots, "logs": self.logs}.items():
            kept = self.noted[name]
            kept.index_copy_(0, place, x.to(kept.dtype).reshape(1, *kept.shape[1:]))
