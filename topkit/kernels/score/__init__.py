"""Query-key scores under grouped-query attention: of keys, of their codes, and lightning's."""

# pyright: strict

from __future__ import annotations

from torch import Tensor

from topkit.kernels import checks, fp4
from topkit.kernels.backend import has_gluon, resolve
from topkit.kernels.score import boundary, reference
from topkit.kernels.score.reference import score

__all__ = ["score", "score_codes", "score_lightning"]


def score_codes(
    queries: Tensor,
    codes: Tensor,
    *,
    dtype: str,
    scale: Tensor | None = None,
    pool: str | None = None,
    start: Tensor | None = None,
    stop: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """Float32 scores of every query against every encoded key, -inf where it does not see the slot.

    Shapes: queries [B, Hq, Tq, D]; codes [B or 1, Hk, T, W] as topkit.kernels.codes encodes them,
    dtype one of sign, int2, int4, int8, fp8_e4m3, mxfp4, nvfp4; scale [B or 1, Hk, T, 1], float32 or
    exponents in int8, None for sign, of blocks [B or 1, Hk, T, ceil(D / block)] for fp4 (topkit.kernels.fp4);
    pool mean, sum or max, of the heads of a group; start [B], stop [B or 1, Tq],
    query i sees the slots start <= s < stop[i] (None: all) -> [B, Hq, Tq, T], pooled [B, Hk, Tq, T].
    The kernel takes 15 bits of a query, 22 against fp8 and fp4; against signs 11 to 14, most of one whose
    components differ in sign.
    Raises: InputError where shapes, dtypes or devices do not belong together.
    """
    checks.tensors(queries=queries, codes=codes)
    boundary.check_codes(queries, codes, dtype, scale, pool)
    boundary.check_window(start, stop, queries)
    unsupported = boundary.codes_unsupported(queries, codes, scale, dtype)
    least = boundary.least_capability(dtype)
    if resolve(backend, queries, unsupported, least) == "torch":
        return reference.score_codes(
            queries, codes, dtype=dtype, scale=scale, pool=pool, start=start, stop=stop
        )
    from topkit.kernels.score import triton_impl

    source, layout = triton_impl.of_codes(queries, codes, dtype, scale, pool)
    return triton_impl.score_codes(source, layout, start, stop)


def score_lightning(
    queries: Tensor,
    keys: Tensor,
    gates: Tensor,
    *,
    query_scale: Tensor | None = None,
    key_scale: Tensor | None = None,
    start: Tensor | None = None,
    stop: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """sum_j gates_j ReLU(q_j . k), scaled by (H d)^-1/2; -inf where a query does not see the slot.

    Shapes: queries [B, H, Tq, d], keys [B or 1, 1, T, d]; gates [B, Tq, H]; query_scale [B, H, Tq, 1]
    and key_scale [B or 1, 1, T, 1], which they are multiplied by, positive, float32 or exponents in
    int8; or keys [B or 1, 1, T, ceil(d / 2)] uint8 packed in fp4 (topkit.kernels.fp4), key_scale those of their
    blocks, queries of any kind or [B, H, Tq, d / 2] packed alike; start [B], stop [B or 1, Tq] -> [B, 1, Tq, T].
    The kernel takes float8_e4m3fn with scales, or both in fp4 of one kind.
    Raises: InputError where shapes, dtypes or devices do not belong together.
    Source: DeepSeek-V3.2-Exp report, equation 1.
    """
    checks.tensors(queries=queries, keys=keys, gates=gates)
    boundary.check_lightning(queries, keys, gates, query_scale, key_scale)
    boundary.check_window(start, stop, queries)
    unsupported = boundary.lightning_unsupported(queries, keys, gates, query_scale, key_scale)
    options = {"query_scale": query_scale, "key_scale": key_scale, "start": start, "stop": stop}
    least = boundary.least_capability(fp4.kind_of(keys, key_scale) or "fp8_e4m3")
    if resolve(backend, queries, unsupported, least) == "torch":
        return reference.score_lightning(queries, keys, gates, **options)
    from topkit.kernels.score import triton_impl

    source, layout = triton_impl.of_lightning(queries, keys, gates, query_scale, key_scale)
    if has_gluon(keys.device):
        from topkit.kernels.score import hopper

        if hopper.takes(source, layout):
            return hopper.score(source, start, stop)
    return triton_impl.score_codes(source, layout, start, stop)
