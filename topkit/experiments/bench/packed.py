"""Packed keys of one kind, and the kernels over them, as the benchmarks call them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from topkit.experiments.bench.session import Session
from topkit.kernels.codes import quantize, signs, stored
from topkit.kernels.quantize_append import quantize_append
from topkit.kernels.score import score_codes, score_lightning
from topkit.kernels.score_select import score_select, score_select_lightning
from topkit.kernels.select_topk import select_topk

# Keys that are encoded at a time.
PIECE = 1 << 16


@dataclass(frozen=True)
class Asked:
    """What an index is asked: queries [B, Hq, 1, D], of lightning codes with scales and gates."""

    queries: Tensor
    scale: Tensor | None = None
    gates: Tensor | None = None


@dataclass(frozen=True)
class Packed:
    """An index: codes [B, H, N, W] and, but for sign, scales [B, H, N, 1]; H is 1 for lightning.

    Lists are of a group's mean scores, or of each query head's own where `pool` is None.
    """

    dtype: str
    codes: Tensor
    scale: Tensor | None
    backend: str
    pool: str | None = "mean"

    @property
    def kind(self) -> str:
        """How the codes are encoded."""
        return "fp8_e4m3" if self.dtype == "lightning" else self.dtype

    def rows(self, rows: slice) -> Packed:
        scale = None if self.scale is None else self.scale[rows]
        return replace(self, codes=self.codes[rows], scale=scale)

    def scores(self, asked: Asked) -> Tensor:
        """[B, H, 1, N]: the mean over each group, or each head's."""
        if self.dtype == "lightning":
            return score_lightning(*self._lightning(asked), **self._scales(asked))
        return score_codes(asked.queries, self.codes, **self._told())

    def select(self, asked: Asked, k: int) -> Tensor:
        """[B, H, 1, k], in no order."""
        free: dict[str, Any] = {"order": None, "check": False}
        if self.dtype == "lightning":
            return score_select_lightning(*self._lightning(asked), k, **self._scales(asked), **free)
        if self.pool is None:  # no kernel does both
            return select_topk(self.scores(asked), k, backend=self.backend, **free)
        return score_select(asked.queries, self.codes, k, **self._told(), **free)

    def append(self, keys: Tensor, at: int) -> None:
        """Encode keys [B, H, t, D] into the slots from `at` on."""
        lightning = self.dtype == "lightning"  # as DeepSeek's inference code encodes
        quantize_append(
            keys, self.codes, self.scale, at,
            dtype=self.kind, hadamard=lightning, pow2=lightning, backend=self.backend,
        )  # fmt: skip

    def append_in_torch(self, keys: Tensor, at: int) -> None:
        """The same by torch's own operations, none of which waits for the host; not of lightning."""
        end = at + keys.shape[2]
        codes, scale = (signs(keys), None) if self.scale is None else quantize(keys, self.kind)
        self.codes[:, :, at:end] = codes
        if self.scale is not None and scale is not None:
            self.scale[:, :, at:end] = scale

    def _told(self) -> dict[str, Any]:
        told = {"dtype": self.dtype, "scale": self.scale, "pool": self.pool}
        return told | {"backend": self.backend}

    def _lightning(self, asked: Asked) -> tuple[Tensor, Tensor, Tensor]:
        assert asked.gates is not None
        return asked.queries, self.codes, asked.gates

    def _scales(self, asked: Asked) -> dict[str, Any]:
        return {"query_scale": asked.scale, "key_scale": self.scale, "backend": self.backend}


def encoded(session: Session, dtype: str, keys: Tensor) -> Packed:
    """An index of keys [B, H, N, D]."""
    packed = _empty(session, dtype, *keys.shape)
    for at in range(0, keys.shape[2], PIECE):
        packed.append(keys[:, :, at : at + PIECE], at)
    return packed


def random_index(session: Session, dtype: str, batch: int, length: int) -> Packed:
    """An index of codes drawn at random: no two keys alike, as repeated ones would tie."""
    s = session.scale
    groups = 1 if dtype == "lightning" else s.groups
    packed = _empty(session, dtype, batch, groups, length, s.dim)
    if packed.codes.dtype == torch.float8_e4m3fn:
        packed.codes.copy_(session.drawn(*packed.codes.shape))
    else:
        low, high = (-127, 128) if dtype == "int8" else (0, 256)
        packed.codes.random_(low, high, generator=session.generator)
    if packed.scale is not None:
        packed.scale.uniform_(0.5, 1.5, generator=session.generator)
    return packed


def random_asked(session: Session, dtype: str, batch: int) -> Asked:
    """Normal queries as an index of a kind takes them."""
    s = session.scale
    if dtype != "lightning":
        return Asked(session.drawn(batch, s.heads, 1, s.dim))
    gates = session.drawn(batch, 1, s.index_heads, dtype=torch.float32)
    queries = session.drawn(batch, s.index_heads, 1, s.dim)
    return of_lightning(queries, gates, session.backend)


def of_lightning(queries: Tensor, gates: Tensor, backend: str) -> Asked:
    """Queries [B, H, 1, d], encoded as DeepSeek's inference code does, and gates [B, 1, H]."""
    codes = torch.empty(queries.shape, dtype=torch.float8_e4m3fn, device=queries.device)
    scale = torch.empty(*queries.shape[:3], 1, device=queries.device)
    Packed("lightning", codes, scale, backend).append(queries, 0)
    return Asked(codes, scale, gates)


def _empty(session: Session, dtype: str, batch: int, groups: int, length: int, dim: int) -> Packed:
    kind, width = stored("fp8_e4m3" if dtype == "lightning" else dtype, dim)
    codes = torch.empty(batch, groups, length, width, dtype=kind, device=session.device)
    scale = None
    if dtype != "sign":
        scale = torch.empty(batch, groups, length, 1, device=session.device)
    return Packed(dtype, codes, scale, session.backend)
