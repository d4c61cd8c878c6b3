"""The best k keys by their codes, of which no scores are written."""

# pyright: strict

from __future__ import annotations

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
    that is not by the two operations' own kernels, unless it is forced.
    Raises: InputError for k < 1, for NaN, and where shapes, dtypes or devices do not belong together.
    """
    checks.tensors(queries=queries, codes=codes)
    boundary.check_codes(queries, codes, dtype, scale, pool)
    k = checks.at_least_one("k", k)
    _check(queries, order, start, stop)
    own = boundary.codes_unsupported(queries, codes, scale, dtype)
    own = own or _unsupported(queries, codes, k, pool)
    how: dict[str, Any] = {"start": start, "stop": stop, "order": order, "check": check}
    least = boundary.least_capability(dtype)
    if resolve(backend, queries, own, least) == "torch" or codes.shape[2] * queries.numel() == 0:
        options = {"dtype": dtype, "scale": scale, "pool": pool, "backend": backend}
        return reference.score_select(queries, codes, k, **options, **how)
    from topkit.kernels.score.triton_impl import of_codes

    # Where each head has keys of its own, a group's sum is its one head's.
    return _launch(*of_codes(queries, codes, dtype, scale, pool or "sum"), k, **how)


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
    own = boundary.lightning_unsupported(queries, keys, gates, query_scale, key_scale)
    own = own or _unsupported(queries, keys, k, "sum")
    how: dict[str, Any] = {"start": start, "stop": stop, "order": order, "check": check}
    least = boundary.least_capability(fp4.kind_of(keys, key_scale) or "fp8_e4m3")
    if resolve(backend, queries, own, least) == "torch" or keys.shape[2] * queries.numel() == 0:
        options = {"query_scale": query_scale, "key_scale": key_scale, "backend": backend}
        return reference.score_select_lightning(queries, keys, gates, k, **options, **how)
    from topkit.kernels.score.triton_impl import of_lightning

    return _launch(*of_lightning(queries, keys, gates, query_scale, key_scale), k, **how)


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
    lists = queries.shape[0] * codes.shape[1] * queries.shape[2]
    if lists > checks.MOST_BLOCKS:
        return f"queries must make at most {checks.MOST_BLOCKS} lists; got {lists}"
    if codes.shape[2] > LONGEST:
        return f"keys must be at most {LONGEST}; got {codes.shape[2]}"
    return too_many(k)
