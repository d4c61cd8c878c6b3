"""The best k keys by their codes, of which no scores are written."""

# pyright: strict

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from topkit.kernels import checks, fp4
from topkit.kernels.backend import resolve
from topkit.kernels.score import boundary
from topkit.kernels.score_select import reference
from topkit.kernels.select_topk import ordered, too_many
from topkit.kernels.select_topk.order import ORDERS

__all__ = ["score_select", "score_select_lightning"]

# What the Triton kernel takes: a longer list would need more candidates than one program can hold.
LONGEST = 1 << 24
# Scores that are held at a time: in float32 a gigabyte.
SCORES = 1 << 28


def score_select(
    queries: Tensor,
    codes: Tensor,
    k: int,
    *,
    dtype: str,
    scale: Tensor | None = None,
    pool: str | None = None,
    start: Tensor | None = None,
    stop: Tensor | None = None,
    order: str | None = "score",
    check: bool = True,
    backend: str = "auto",
) -> Tensor:
    """The slots of the min(k, T) best keys by their codes: `select_topk` of `score_codes`.

    Shapes: as `score_codes`; k, order, check as `select_topk` -> [B, Hq, Tq, min(k, T)] int64, pooled
    [B, Hk, Tq, min(k, T)]. The kernel writes no scores; it takes one list a group, pooled, and one
    that is not by the two operations' own kernels, unless it is forced. Queries are taken in tiles: at most
    SCORES scores, or those of one query of all rows and heads, have room at a time.
    Raises: InputError for k < 1, for NaN, and where shapes, dtypes or devices do not belong together.
    """
    checks.tensors(queries=queries, codes=codes)
    boundary.check_codes(queries, codes, dtype, scale, pool)
    k = checks.at_least_one("k", k)
    _check(queries, order, start, stop)
    # Queries are taken in tiles: of one tile this kernel takes as many as any.
    own = boundary.codes_unsupported(queries[:, :, :1], codes, scale, dtype)
    own = own or _unsupported(queries, codes, k, pool)
    how: dict[str, Any] = {"start": start, "stop": stop, "order": order, "check": check}
    least = boundary.least_capability(dtype)
    plain = resolve(backend, queries, own, least) == "torch"

    def select(part: slice) -> Tensor:
        some = queries[:, :, part]
        window: dict[str, Any] = {**how, "stop": None if stop is None else stop[:, part]}
        if plain or codes.shape[2] * some.numel() == 0:
            options = {"dtype": dtype, "scale": scale, "pool": pool, "backend": backend}
            return reference.score_select(some, codes, k, **options, **window)
        from topkit.kernels.score.triton_impl import of_codes

        # Where each head has keys of its own, a group's sum is its one head's.
        return _launch(*of_codes(some, codes, dtype, scale, pool or "sum"), k, **window)

    return _in_tiles(select, queries, queries.shape[1] if plain else codes.shape[1], codes.shape[2])


def score_select_lightning(
    queries: Tensor,
    keys: Tensor,
    gates: Tensor,
    k: int,
    *,
    query_scale: Tensor | None = None,
    key_scale: Tensor | None = None,
    start: Tensor | None = None,
    stop: Tensor | None = None,
    order: str | None = "score",
    check: bool = True,
    backend: str = "auto",
) -> Tensor:
    """The slots of the min(k, T) best keys by lightning's score: `select_topk` of `score_lightning`.

    Shapes: as `score_lightning`; k, order, check as `select_topk` -> [B, 1, Tq, min(k, T)] int64.
    Raises: InputError for k < 1, for NaN, and where shapes, dtypes or devices do not belong together.
    """
    checks.tensors(queries=queries, keys=keys, gates=gates)
    boundary.check_lightning(queries, keys, gates, query_scale, key_scale)
    k = checks.at_least_one("k", k)
    _check(queries, order, start, stop)
    first = None if query_scale is None else query_scale[:, :, :1]
    own = boundary.lightning_unsupported(queries[:, :, :1], keys, gates[:, :1], first, key_scale)
    own = own or _unsupported(queries, keys, k, "sum")
    how: dict[str, Any] = {"start": start, "stop": stop, "order": order, "check": check}
    least = boundary.least_capability(fp4.kind_of(keys, key_scale) or "fp8_e4m3")
    plain = resolve(backend, queries, own, least) == "torch"

    def select(part: slice) -> Tensor:
        some, its_gates = queries[:, :, part], gates[:, part]
        scales = None if query_scale is None else query_scale[:, :, part]
        window: dict[str, Any] = {**how, "stop": None if stop is None else stop[:, part]}
        if plain or keys.shape[2] * some.numel() == 0:
            options = {"query_scale": scales, "key_scale": key_scale, "backend": backend}
            return reference.score_select_lightning(some, keys, its_gates, k, **options, **window)
        from topkit.kernels.score.triton_impl import of_lightning

        return _launch(*of_lightning(some, keys, its_gates, scales, key_scale), k, **window)

    return _in_tiles(select, queries, queries.shape[1] if plain else 1, keys.shape[2])


def _in_tiles(
    select: Callable[[slice], Tensor], queries: Tensor, heads: int, length: int
) -> Tensor:
    """What some queries after the others select: SCORES at a time, of so many heads that scores are written of."""
    rows, count = queries.shape[0], queries.shape[2]
    width = max(1, min(SCORES // max(1, length), checks.MOST_BLOCKS) // max(1, rows * heads))
    if count <= width:
        return select(slice(0, count))
    parts = [slice(at, min(at + width, count)) for at in range(0, count, width)]
    return torch.cat([select(part) for part in parts], 2)


def _launch(
    source: Any,
    layout: Any,
    k: int,
    start: Tensor | None,
    stop: Tensor | None,
    order: str | None,
    check: bool,
) -> Tensor:
    from topkit.kernels.score_select import triton_impl

    with torch.cuda.device_of(source.queries):  # Triton launches on the current device
        slots, nan = triton_impl.score_select(source, layout, k, start, stop, order == "score")
    return ordered(slots, nan, order, check)


def _check(queries: Tensor, order: str | None, start: Tensor | None, stop: Tensor | None) -> None:
    checks.one_of("order", order, ORDERS)
    boundary.check_window(start, stop, queries)


def _unsupported(queries: Tensor, codes: Tensor, k: int, pool: str | None) -> str | None:
    if pool is None and queries.shape[1] != codes.shape[1]:
        return "pool must be mean, sum or max where heads share a key's; got None"
    if codes.shape[2] > LONGEST:
        return f"keys must be at most {LONGEST}; got {codes.shape[2]}"
    return too_many(k)
