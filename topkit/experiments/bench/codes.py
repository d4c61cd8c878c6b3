"""Codes drawn at random, and the kernels over them with the arguments that `attach` passes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from topkit.experiments.bench.formulas import LIGHTNING
from topkit.experiments.bench.session import Session
from topkit.kernels import fp4
from topkit.kernels.codes import scales_stored, stored
from topkit.kernels.quantize_append import quantize_append
from topkit.kernels.score import score_codes, score_lightning
from topkit.kernels.score_select import score_select, score_select_lightning

# Bits of scales that are drawn: powers of two and e4m3 about one.
DRAWN = {"mxfp4": (124, 131), "nvfp4": (0x30, 0x40)}


@dataclass(frozen=True)
class Codes:
    """Codes [B, H, N, W] and, but for sign, scales [B, H, N, 1 or blocks]; H is 1 for lightning."""

    dtype: str
    codes: Tensor
    scale: Tensor | None


@dataclass(frozen=True)
class Queries:
    """Queries [B, Hq, 1, D]; of lightning as codes, with scales as keys have, and gates [B, 1, H]."""

    queries: Tensor
    scale: Tensor | None = None
    gates: Tensor | None = None


def random_codes(session: Session, dtype: str, batch: int, length: int) -> Codes:
    """No two keys alike, as repeated ones would tie."""
    s, code = session.scale, LIGHTNING.get(dtype, dtype)
    kind, width = stored(code, s.dim)
    shape = (batch, 1 if dtype in LIGHTNING else s.groups, length)
    codes = torch.empty(*shape, width, dtype=kind, device=session.device)
    if kind == torch.float8_e4m3fn:
        codes.copy_(session.drawn(*codes.shape))
    else:
        low, high = (-127, 128) if dtype == "int8" else (0, 256)
        codes.random_(low, high, generator=session.generator)
    if dtype == "sign":
        return Codes(dtype, codes, None)
    if code in fp4.BLOCK:
        (kind, *_), count = scales_stored(code, s.dim)
        bits = torch.empty(*shape, count, dtype=torch.uint8, device=session.device)
        return Codes(
            dtype, codes, bits.random_(*DRAWN[code], generator=session.generator).view(kind)
        )
    scale = torch.empty(*shape, 1, device=session.device)
    return Codes(dtype, codes, scale.uniform_(0.5, 1.5, generator=session.generator))


def random_queries(session: Session, dtype: str, batch: int) -> Queries:
    """Normal queries as codes of a kind take them: lightning's encoded as DeepSeek's inference code does."""
    s = session.scale
    if dtype not in LIGHTNING:
        return Queries(session.drawn(batch, s.heads, 1, s.dim))
    gates = session.drawn(batch, 1, s.index_heads, dtype=torch.float32)
    queries = session.drawn(batch, s.index_heads, 1, s.dim)
    code = LIGHTNING[dtype]
    kind, width = stored(code, s.dim)
    (floats, *_), count = scales_stored(code, s.dim)
    codes = torch.empty(*queries.shape[:3], width, dtype=kind, device=session.device)
    scale = torch.empty(*queries.shape[:3], count, dtype=floats, device=session.device)
    how: dict[str, Any] = {"dtype": code, "hadamard": True, "pow2": code == "fp8_e4m3"}
    quantize_append(queries, codes, scale, 0, **how, backend=session.backend)
    return Queries(codes, scale, gates)


def scores(codes: Codes, queries: Queries, backend: str) -> Tensor:
    """[B, H, 1, N]: the mean over each group, or lightning's weighted sum."""
    if codes.dtype in LIGHTNING:
        return _lightning(score_lightning, codes, queries, backend)()
    return _plain(score_codes, codes, queries, backend)()


def best(codes: Codes, queries: Queries, k: int, backend: str) -> Tensor:
    """The slots [B, H, 1, k] of the best of those scores, in no order."""
    how: dict[str, Any] = {"order": None, "check": False}
    if codes.dtype in LIGHTNING:
        return _lightning(score_select_lightning, codes, queries, backend)(k, **how)
    return _plain(score_select, codes, queries, backend)(k, **how)


def _plain(kernel: Any, codes: Codes, queries: Queries, backend: str) -> Any:
    how = {"dtype": codes.dtype, "scale": codes.scale, "pool": "mean", "backend": backend}
    return partial(kernel, queries.queries, codes.codes, **how)


def _lightning(kernel: Any, codes: Codes, queries: Queries, backend: str) -> Any:
    scales = {"query_scale": queries.scale, "key_scale": codes.scale, "backend": backend}
    return partial(kernel, queries.queries, codes.codes, queries.gates, **scales)
