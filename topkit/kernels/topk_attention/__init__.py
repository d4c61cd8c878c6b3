"""Attention of each query over its own exact Top-k keys, forward and backward: for training."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor

from topkit.errors import InputError
from topkit.kernels import checks
from topkit.kernels.backend import interpreted, resolve
from topkit.kernels.topk_attention import reference, tiled
from topkit.kernels.topk_attention.cuts import Cuts
from topkit.kernels.topk_attention.thresholds import cuts_begun, cuts_of

__all__ = ["Cuts", "cuts_of", "keys_kept", "most_kept", "topk_attention"]

BACKENDS = ("auto", "torch", "tiled", "flash")
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def topk_attention(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    kept: Tensor,
    *,
    scaling: float | None = None,
    start: Tensor | None = None,
    backend: str = "auto",
    most: int | None = None,
) -> Tensor:
    """softmax(scaling q k) v of each query over its `kept` best visible keys, ties by the lowest slot.

    Gradients flow through the keys that are kept, and through no choice. Query i of Tq sees the slots
    start <= s <= T - Tq + i. Shapes: queries [B, Hq, Tq, D]; keys [B, Hk, T, D], values [B, Hk, T, Dv], Hq a
    multiple of Hk; kept [Tq] or [B or 1, Tq], whole numbers; start [B], the first real slots -> [B, Hq, Tq, Dv]
    in queries' dtype. A query that sees nothing, as padding does, gets zeros.
    backend: "torch" is the definition, which holds all scores; "tiled", any device, dtype and head dimension;
    "flash", a GPU's kernels: bfloat16 and float16, whose scores they sum in float32, and head dimensions of 16, 32, 64
    and 128; "auto", flash where it can run, else tiled, as float32 always is. most: what no query keeps more
    than, where it is known: a GPU is then not waited for to learn it.
    Raises: InputError where shapes, dtypes or devices do not belong together, for scores that hold NaN, and for
    "flash" where it cannot run. Where a caller is compiled by torch, its graph breaks here.
    """
    options: dict[str, Any] = {"scaling": scaling, "start": start, "backend": backend, "most": most}
    if torch.compiler.is_compiling():
        apart: Any = torch.compiler.disable(_attend)
        return apart(queries, keys, values, kept, **options)
    return _attend(queries, keys, values, kept, **options)


def _attend(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    kept: Tensor,
    *,
    scaling: float | None,
    start: Tensor | None,
    backend: str,
    most: int | None,
) -> Tensor:
    """As `topk_attention`; what it launches, and waits for, no graph holds."""
    scale = queries.shape[-1] ** -0.5 if scaling is None else scaling
    kept = _check(queries, keys, values, kept, scale, start)
    checks.one_of("backend", backend, BACKENDS)
    own = _kernels(backend, queries, values)
    with reference.uncast(queries):
        if own is None:
            form = reference if backend == "torch" else tiled
            return form.topk_attention(queries, keys, values, kept, scaling=scale, start=start)
        cuts, settle = cuts_begun(queries, keys, kept, start, own.SLACK, most=most)
        out = own.attend(queries, keys, values, cuts, scaling=scale, start=start)
        # The GPU has the attention to do while the host waits for the cuts.
        if settle():
            out = own.attend(queries, keys, values, cuts, scaling=scale, start=start)
        return out


def keys_kept(
    ratio: Fraction | str | float,
    count: int,
    length: int,
    *,
    start: Tensor | None = None,
    least: int = 1,
    device: torch.device | str = "cpu",
) -> Tensor:
    """How many keys each query keeps at a ratio: ceil(ratio x visible), at least `least`, [B or 1, Tq] int64.

    Exact in whole numbers, as 1 % of 300 is 3. Visible are a query's own slot and those before it, from
    `start` [B] on; of `count` queries the last stands in slot `length` - 1.
    Raises: InputError for a ratio outside (0, 1].
    """
    share = _share(ratio)
    checks.at_least_one("least", least)
    seen = torch.arange(length - count + 1, length + 1, device=device)[None]
    if start is not None:
        seen = (seen - start.to(seen.device)[:, None]).clamp_min(0)
    part = (seen * share.numerator + share.denominator - 1) // share.denominator
    return torch.minimum(part.clamp_min(least), seen)


def most_kept(ratio: Fraction | str | float, length: int, *, least: int = 1) -> int:
    """What no query of `length` keys keeps more than, by `keys_kept`.

    Raises: InputError for a ratio outside (0, 1].
    """
    return min(length, max(least, math.ceil(_share(ratio) * length)))


def _share(ratio: Fraction | str | float) -> Fraction:
    share = Fraction(str(ratio))
    if not 0 < share <= 1:
        raise InputError(f"ratio must lie in (0, 1]; got {ratio}")
    return share


def _check(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    kept: Tensor,
    scaling: float,
    start: Tensor | None,
) -> Tensor:
    """Refuse what does not belong together; kept as [B or 1, Tq]."""
    checks.tensors(queries=queries, keys=keys, values=values, kept=kept)
    for name, x in (("queries", queries), ("keys", keys), ("values", values)):
        checks.dims(name, x, 4)
        checks.typed(name, x, DTYPES)
        checks.typed(name, x, (queries.dtype,))
    (rows, heads, count, dim), (_, groups, length, _) = queries.shape, keys.shape
    checks.shaped("keys", keys, (rows, groups, length, dim))
    checks.shaped("values", values, (rows, groups, length, values.shape[3]))
    if groups == 0 or heads % groups:
        raise InputError(f"keys must have a divisor of {heads} heads (query); got {groups}")
    if not 0 < count <= length:
        raise InputError(
            f"queries must be those of 1 to {length} newest tokens (keys); got {count}"
        )
    if not 0 < scaling < float("inf"):
        raise InputError(f"scaling must be a positive number; got {scaling}")
    checks.typed("kept", kept, checks.PLACES)
    kept = (kept[None] if kept.dim() == 1 else kept).long()
    checks.shaped("kept", kept, (rows, count), one_row=True)
    checks.beside(queries.device, keys=keys, values=values, kept=kept, start=start)
    if start is not None:
        checks.typed("start", start, checks.PLACES)
        checks.shaped("start", start, (rows,))
    return kept


def _kernels(backend: str, queries: Tensor, values: Tensor) -> Any:
    """The module that attends by kernels, None for another form.

    Raises: InputError for "flash" where it cannot run.
    """
    if backend not in ("auto", "flash") or (backend == "auto" and not queries.is_cuda):
        return None
    why = _not_by_flash(queries, values)
    if why is None:
        from topkit.kernels.topk_attention import flash

        return flash
    if backend == "flash":
        raise InputError(f'backend "flash": {why}')
    return None


def _not_by_flash(queries: Tensor, values: Tensor) -> str | None:
    """What the kernels do not take, as a sentence."""
    if not queries.is_cuda and not interpreted():
        return f"needs tensors on a CUDA GPU; these are on {queries.device}"
    if resolve("auto" if queries.is_cuda else "triton", queries) == "torch":
        return "needs Triton and an NVIDIA GPU of compute capability 8.0 or more"
    if queries.dtype not in (torch.bfloat16, torch.float16):
        return f"takes bfloat16 and float16; got {queries.dtype}"
    for width in (queries.shape[3], values.shape[3]):
        if width not in (16, 32, 64, 128):
            return f"takes head dimensions of 16, 32, 64 and 128; got {width}"
    if queries.shape[0] * queries.shape[1] > checks.MOST_BLOCKS:
        return f"takes at most {checks.MOST_BLOCKS} heads of all rows; got {tuple(queries.shape)}"
    return None
