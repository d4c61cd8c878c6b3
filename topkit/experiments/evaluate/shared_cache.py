"""One prefix that all rows share, and behind it a tail of each row's own."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from topkit.indexers.base import Cache
from topkit.kernels.blocks import blocks
from topkit.kernels.gather_attention import gathered
from topkit.kernels.rounding import norms
from topkit.kernels.score import score

# The part of all slots that a list holds at least for a product over all of them to cost less than
# gathering some; see topkit.kernels.gather_attention.long_lists.
LONG = 16


class SharedCache(Cache):
    """What rows attend to behind one prefix, which is held once, whatever their number.

    Shapes: prefix keys [1, Hk, P, D] and their norms [1, Hk, P], tail keys [B, Hk, t, D], values alike;
    slots count through both. keys and values [B, Hk, P + t, D] are made where a recipe reads them.
    """

    def __init__(self, prefix: Cache, prefix_norms: Tensor, tail: Cache) -> None:
        self.prefix, self.prefix_norms, self.tail = prefix, prefix_norms, tail

    @cached_property
    def keys(self) -> Tensor:  # type: ignore[override]
        return self._whole(self.prefix.keys, self.tail.keys)

    @cached_property
    def values(self) -> Tensor:  # type: ignore[override]
        assert self.prefix.values is not None and self.tail.values is not None
        return self._whole(self.prefix.values, self.tail.values)

    @property
    def length(self) -> int:
        return self.prefix.length + self.tail.length

    @property
    def heads(self) -> int:
        return self.tail.heads

    @property
    def value_width(self) -> int | None:
        return self.tail.value_width

    @property
    def key_bytes(self) -> int:
        return self.tail.key_bytes

    def since(self, slot: int) -> Tensor:
        if slot >= self.prefix.length:
            return self.tail.since(slot - self.prefix.length)
        return super().since(slot)

    def until(self, stop: int) -> Cache:
        if stop == self.length:
            return self
        if stop <= self.prefix.length:  # views: of rows that are all one
            own, rows = self.prefix.until(stop), len(self.tail.keys)
            assert own.values is not None
            each = (x.expand(rows, -1, -1, -1) for x in (own.keys, own.values))
            return Cache(*each)
        tail = self.tail.until(stop - self.prefix.length)
        return SharedCache(self.prefix, self.prefix_norms, tail)

    def of(self, rows: slice | Tensor) -> SharedCache:
        """The same prefix, and the tails of some rows."""
        assert self.tail.values is not None
        tail = Cache(self.tail.keys[rows], self.tail.values[rows])
        return SharedCache(self.prefix, self.prefix_norms, tail)

    def norms(self) -> Tensor:
        """Of the keys of all slots [B, Hk, P + t]."""
        of_tail = norms(self.tail.keys)
        return torch.cat([self.prefix_norms.expand(len(of_tail), -1, -1), of_tail], -1)

    def scores(self, queries: Tensor) -> Tensor:
        """Float32 dot products [B, Hq, n, P + t] of queries [B, Hq, n, D] with all keys."""
        rows, heads, count, width = queries.shape
        keys, split = self.prefix.keys, self.prefix.length
        by_head = queries.new_empty(heads, rows * count, self.length, dtype=torch.float32)
        # Every row's queries of a head are rows of one product.
        together = queries.transpose(0, 1).reshape(1, heads, rows * count, width)
        if keys.dtype == torch.float32:  # written in place: a copy would cost half as much again
            by_group = together.float().reshape(keys.shape[1], -1, width)
            whole = by_head.view(keys.shape[1], -1, self.length)
            torch.bmm(by_group, keys[0].mT, out=whole[..., :split])
        else:
            by_head[..., :split] = score(together, keys)[0]
        out = by_head.view(heads, rows, count, -1).transpose(0, 1)
        out[..., split:] = score(queries, self.tail.keys)
        return out

    def weigh(self, weights: Tensor, at: int = 0, part: slice | None = None) -> Tensor:
        """The sums [b, Hq, n, Dv] of the values of the slots from `at` on, by weights [b, Hq, n, c], in some rows."""
        assert self.prefix.values is not None and self.tail.values is not None
        stop, split = at + weights.shape[-1], self.prefix.length
        of_prefix, of_tail = weights.tensor_split([max(0, split - at)], -1)
        own = self.tail.values if part is None else self.tail.values[part]
        behind = own[:, :, max(0, at - split) : max(0, stop - split)]
        out = self._of_tail(of_tail, behind)
        if of_prefix.shape[-1]:
            rows, heads, count, _ = weights.shape
            values = self.prefix.values[0, :, at : min(stop, split)].float()
            by_head = of_prefix.transpose(0, 1).reshape(len(values), -1, values.shape[1])
            out = out + (by_head @ values).view(heads, rows, count, -1).transpose(0, 1)
        return out

    def weigh_lists(self, weights: Tensor, slots: Tensor) -> Tensor:
        """The sums of chosen values, as `attend` of topkit.kernels.gather_attention asks for them."""
        assert self.prefix.values is not None and self.tail.values is not None
        split, (rows, heads, count, kept) = self.prefix.length, slots.shape
        weights = weights.squeeze(3)
        if kept * LONG >= self.length:
            whole = weights.new_zeros(rows, heads, count, self.length)
            whole.scatter_add_(-1, slots.clamp_min(0), weights)
            return self.weigh(whole)[:, :, :, None]
        behind = slots >= split
        of_tail = weights.new_zeros(rows, heads, count, self.tail.length)
        of_tail.scatter_add_(-1, (slots - split).clamp_min(0), weights.where(behind, 0.0))
        out = self._of_tail(of_tail, self.tail.values)[:, :, :, None]
        before = weights.masked_fill(behind, 0.0)[:, :, :, None]
        width = self.prefix.values.shape[3]
        for part in blocks(count, rows * heads * kept * width, weights.device):
            values = gathered(self.prefix.values, slots[:, :, part].clamp_max(split - 1))
            out[:, :, part] += before[:, :, part] @ values
        return out

    def _of_tail(self, weights: Tensor, values: Tensor) -> Tensor:
        """The sums [B, Hq, n, Dv] of a tail's values [B, Hk, c, Dv], by weights [B, Hq, n, c]."""
        by_group = weights.unflatten(1, (values.shape[1], -1)).flatten(2, 3)
        return (by_group @ values.float()).view(*weights.shape[:3], -1)

    def _whole(self, prefix: Tensor, tail: Tensor) -> Tensor:
        return torch.cat([prefix.expand(len(tail), -1, -1, -1), tail], 2)
