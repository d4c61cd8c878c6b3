"""What scoring refuses, and what its kernels do not take though their definitions do."""

from __future__ import annotations

import torch
from torch import Tensor

from topkit.errors import InputError
from topkit.kernels import checks, fp4
from topkit.kernels.backend import LEAST, LEAST_FP8
from topkit.kernels.codes import DTYPES, scales_stored, stored

POOLS = (None, "mean", "sum", "max")
SCALES = (torch.float32, torch.int8)
# What the Triton kernels take.
QUERIES = (torch.bfloat16, torch.float16, torch.float32)
WIDTHS = (64, 128)
# Heads are columns of a product: of a group with one key head, and lightning's.
MOST_SHARING = 32
MOST_HEADS = 64
# A head's bytes are counted in 32 bits, to the end of its last tile; more than one is kept free.
MOST_BYTES = 2**31 - 2**18


def check_codes(
    queries: Tensor, codes: Tensor, dtype: str, scale: Tensor | None, pool: str | None
) -> None:
    """Refuses codes that are not what `dtype` says, and tensors that do not belong together."""
    checks.one_of("dtype", dtype, DTYPES)
    checks.one_of("pool", pool, POOLS)
    checks.dims("queries", queries, 4)
    checks.dims("codes", codes, 4)
    checks.beside(queries.device, codes=codes, scale=scale)
    rows, heads, _, dim = queries.shape
    groups, length = codes.shape[1:3]
    if not queries.is_floating_point():
        raise InputError(f"queries must be floating-point; got {queries.dtype}")
    if groups == 0 or heads % groups:
        raise InputError(f"codes must have a divisor of {heads} heads (query); got {groups}")
    kind, width = stored(dtype, dim)
    checks.typed("codes", codes, (kind,))
    checks.shaped("codes", codes, (rows, groups, length, width), one_row=True)
    if (scale is None) != (dtype == "sign"):
        raise InputError(f"scale must be {'None' if scale is not None else 'given'} for {dtype}")
    if scale is not None:
        kinds, width = scales_stored(dtype, dim)
        checks.typed("scale", scale, kinds)
        checks.shaped("scale", scale, (*codes.shape[:3], width))


def check_lightning(
    queries: Tensor,
    keys: Tensor,
    gates: Tensor,
    query_scale: Tensor | None,
    key_scale: Tensor | None,
) -> None:
    """Refuses tensors that do not belong together."""
    checks.dims("queries", queries, 4)
    checks.dims("keys", keys, 4)
    checks.beside(
        queries.device, keys=keys, gates=gates, query_scale=query_scale, key_scale=key_scale
    )
    rows, heads, count, dim = queries.shape
    packed, asked = fp4.kind_of(keys, key_scale), fp4.kind_of(queries, query_scale)
    if asked is not None:
        if asked != packed:
            raise InputError(f"queries of {asked} need keys of {asked}; got {packed or keys.dtype}")
        dim *= 2
    width = dim if packed is None else -(-dim // 2)
    checks.shaped("keys", keys, (rows, 1, keys.shape[2], width), one_row=True)
    checks.shaped("gates", gates, (rows, count, heads))
    if asked is not None and query_scale is not None:
        _, blocks = scales_stored(asked, dim)
        checks.shaped("query_scale", query_scale, (*queries.shape[:3], blocks))
    elif query_scale is not None:
        checks.typed("query_scale", query_scale, SCALES)
        checks.shaped("query_scale", query_scale, (rows, heads, count, 1))
    if packed is not None and key_scale is not None:
        _, blocks = scales_stored(packed, dim)
        checks.shaped("key_scale", key_scale, (*keys.shape[:3], blocks))
    elif key_scale is not None:
        checks.typed("key_scale", key_scale, SCALES)
        checks.shaped("key_scale", key_scale, (*keys.shape[:3], 1))


def check_window(start: Tensor | None, stop: Tensor | None, queries: Tensor) -> None:
    """Refuses places that are not those of these queries."""
    rows, count = queries.shape[0], queries.shape[2]
    checks.beside(queries.device, start=start, stop=stop)
    if start is not None:
        checks.typed("start", start, checks.PLACES)
        checks.shaped("start", start, (rows,))
    if stop is not None:
        checks.typed("stop", stop, checks.PLACES)
        checks.shaped("stop", stop, (rows, count), one_row=True)


def least_capability(dtype: str) -> tuple[int, int]:
    """The compute capability that the kernel of such codes needs, also as lightning's keys."""
    return LEAST_FP8 if dtype == "fp8_e4m3" else LEAST


def codes_unsupported(
    queries: Tensor, codes: Tensor, scale: Tensor | None, dtype: str
) -> str | None:
    """What the kernel of codes does not take, as a sentence."""
    if queries.dtype not in QUERIES:
        return f"queries must be bfloat16, float16 or float32; got {queries.dtype}"
    group = queries.shape[1] // codes.shape[1]
    if group > MOST_SHARING:
        return f"queries must have at most {MOST_SHARING} heads to a key's; got {group}"
    return _unsupported(queries, queries.shape[3], "codes", codes, "scale", scale)


def lightning_unsupported(
    queries: Tensor,
    keys: Tensor,
    gates: Tensor,
    query_scale: Tensor | None,
    key_scale: Tensor | None,
) -> str | None:
    """What the lightning kernel does not take, as a sentence."""
    kind = torch.uint8 if keys.dtype == torch.uint8 else torch.float8_e4m3fn
    told = "packed as keys are" if kind == torch.uint8 else "float8_e4m3fn"
    for name, tensor in {"queries": queries, "keys": keys}.items():
        if tensor.dtype != kind:
            return f"{name} must be {told}, with scales; got {tensor.dtype}"
    floats = (
        {"gates": gates} if kind == torch.uint8 else {"query_scale": query_scale, "gates": gates}
    )
    for name, tensor in floats.items():
        if tensor is None or tensor.dtype != torch.float32:
            return f"{name} must be float32; got {None if tensor is None else tensor.dtype}"
    if key_scale is None:
        return "key_scale must be float32 or int8; got None"
    dim = queries.shape[3]
    if query_scale is not None and kind == torch.uint8:
        dim *= 2
        if dim in WIDTHS and fp4.unworded(query_scale):
            return _UNWORDED.format("query_scale", query_scale.stride())
    if queries.shape[1] > MOST_HEADS:
        return f"queries must have at most {MOST_HEADS} heads; got {queries.shape[1]}"
    return checks.ungraded(gates=gates, query_scale=query_scale) or _unsupported(
        queries, dim, "keys", keys, "key_scale", key_scale
    )


_UNWORDED = (
    "the scales of {}'s blocks must stand together, at multiples of their number; got strides {}"
)


def _unsupported(
    queries: Tensor, dim: int, name: str, codes: Tensor, scale_name: str, scale: Tensor | None
) -> str | None:
    (rows, _, count, _), (groups, length, width) = queries.shape, codes.shape[1:]
    if dim not in WIDTHS:
        return f"queries must have 64 or 128 dimensions; got {dim}"
    if count > checks.MOST_BLOCKS or rows * groups > checks.MOST_BLOCKS:
        return f"queries must be at most {checks.MOST_BLOCKS} to a head, as must rows x heads of {name}"
    if length * width > MOST_BYTES:
        return f"{name} must be at most {MOST_BYTES} bytes a head; got {length * width}"
    if codes.stride(2) != width and length > 1:
        return f"{name} must lie one behind the other; got stride {codes.stride(2)}, not {width}"
    if scale is not None and scale.stride(2) != scale.shape[3] and length > 1:
        each = scale.shape[3]
        return (
            f"{scale_name} must lie one behind the other; got stride {scale.stride(2)}, not {each}"
        )
    if scale is not None and scale.shape[3] > 1 and fp4.unworded(scale):
        return _UNWORDED.format(name, scale.stride())
    if scale is not None and scale.dtype == torch.uint8 and fp4.askew(codes):
        return f"{name} of mxfp4 must stand at multiples of 16 bytes; got strides {codes.stride()}"
    return checks.ungraded(queries=queries, **{scale_name: scale}) or checks.unpacked(
        queries=queries, **{name: codes}
    )
