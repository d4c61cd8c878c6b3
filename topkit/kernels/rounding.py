"""What a float32 dot product may be off by."""

# pyright: strict
from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from topkit.kernels.blocks import blocks

# Of the product of the two norms: sums of a hundred terms, added in any order, stay within it.
TOLERANCE = 1e-6


@dataclass(frozen=True)
class Rounding:
    """The bound TOLERANCE |q| |k| of each query and key: a matter of this pair, whatever other keys hold.

    Shapes: queries [B, Hq, Tq], TOLERANCE times the norms; keys [B or 1, Hk, T], norms.
    """

    queries: Tensor
    keys: Tensor

    @classmethod
    def of(cls, queries: Tensor, keys: Tensor) -> Rounding:
        """Shapes: queries [B, Hq, Tq, D], keys [B or 1, Hk, T, D]."""
        return cls.of_norms(queries, norms(keys))

    @classmethod
    def of_norms(cls, queries: Tensor, keys: Tensor) -> Rounding:
        """Shapes: queries [B, Hq, Tq, D], norms of keys [B or 1, Hk, T]."""
        return cls(TOLERANCE * norms(queries), keys)

    def of_rows(self, rows: slice | Tensor) -> Rounding:
        """Those of some of the rows."""
        return Rounding(self.queries[rows], self.keys if len(self.keys) == 1 else self.keys[rows])

    def whole(self) -> Tensor:
        """The bounds of all keys [B, Hq, Tq, T]."""
        return (self._by_group(self.queries)[..., None] * self.keys[:, :, None, None]).flatten(1, 2)

    def at(self, slots: Tensor) -> Tensor:
        """The bounds of some slots [B, Hs, Tq, n], those of -1 among them anything: [B, Hq, Tq, n]."""
        heads = self.queries.shape[1]
        each = slots.clamp_min(0).repeat_interleave(heads // slots.shape[1], 1)
        by_group = self._by_group(each)
        # A view, though each head reads it: norms of all keys are more than those of a few slots.
        keys = self.keys[:, :, None, None].expand(*by_group.shape[:4], -1)
        return self.queries[..., None] * keys.gather(-1, by_group).flatten(1, 2)

    def _by_group(self, by_head: Tensor) -> Tensor:
        return torch.unflatten(by_head, 1, (self.keys.shape[1], -1))


def norms(vectors: Tensor) -> Tensor:
    """Euclidean norms in float32 of vectors [..., T, D], also where squares do not fit into it."""
    # Written to one tensor: what is kept of a block would lie in the memory that the next could reuse.
    lengths = torch.empty(vectors.shape[:-1], dtype=torch.float32, device=vectors.device)
    for part in blocks(vectors.shape[-2], vectors[..., :1, :].numel(), vectors.device):
        lengths[..., part] = _norms(vectors[..., part, :])
    return lengths


def _norms(vectors: Tensor) -> Tensor:
    if not vectors.is_floating_point() or vectors.element_size() == 1:
        vectors = vectors.float()  # of integers and fp8 torch has no norm
    if vectors.dtype != torch.float64:
        short = _of_dtype(vectors, torch.float32)
        if short.is_cuda:  # which nobody waits for
            return short.where(short.isfinite(), _of_dtype(vectors, torch.float64).float())
        if short.isfinite().all():
            return short
    return _of_dtype(vectors, torch.float64).float()


def _of_dtype(vectors: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.linalg.vector_norm(vectors, dim=-1, dtype=dtype)  # pyright: ignore (torch says no type)
