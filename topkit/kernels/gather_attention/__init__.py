"""Attention over chosen keys."""

# pyright: strict

from __future__ import annotations

import torch
from torch import Tensor

from topkit.errors import InputError
from topkit.kernels import checks
from topkit.kernels.backend import resolve
from topkit.kernels.gather_attention import reference
from topkit.kernels.gather_attention.long_lists import queries_at_a_time
from topkit.kernels.gather_attention.reference import attend, gathered
from topkit.kernels.gather_attention.softmax import PLAIN, Softmax
from topkit.kernels.score.boundary import check_window

__all__ = [
    "PLAIN",
    "Softmax",
    "attend",
    "attend_all",
    "gather_attention",
    "gather_scores",
    "gathered",
    "queries_at_a_time",
]

# What the Triton kernel takes. Heads of one list are rows of a matrix product, in registers.
DTYPES = (torch.bfloat16, torch.float16)
WIDTHS = (64, 128)
MOST_HEADS = 64


def gather_attention(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    indices: Tensor,
    *,
    scaling: float,
    log_weights: Tensor | None = None,
    rest_values: Tensor | None = None,
    rest_logits: Tensor | None = None,
    rest_share: Tensor | None = None,
    softmax: Softmax = PLAIN,
    backend: str = "auto",
) -> Tensor:
    """The attention output of each query over its chosen keys alone.

    Shapes: queries [B, Hq, Tq, D]; keys [B or 1, Hk, T, D]; values [B or 1, Hk, T, Dv]; indices
    [B, Hs, Tq, k] with Hs in {Hq, Hk, 1} and -1 for none; log_weights as indices, added to the
    scaled scores; rest_values [B, Hq, Tq, r, Dv] with rest_logits [B, Hq, Tq, r], which join the
    softmax, or rest_share, the part of the output that each makes up -> [B, Hq, Tq, Dv] in queries'
    dtype. A query that chose nothing gets zeros. rest_logits are capped already, if `softmax` caps. A slot beyond T is refused on a CPU; on a GPU, which
    nobody waits for, the answer is NaN. `softmax`: sinks and softcap, which the kernel does not take.
    Raises: InputError where shapes, dtypes or devices do not belong together.
    """
    rest = {"rest_values": rest_values, "rest_logits": rest_logits, "rest_share": rest_share}
    checks.tensors(queries=queries, keys=keys, values=values, indices=indices)
    _check(queries, keys, values, indices, log_weights)
    _check_rest(queries, values, **rest)
    lists = max(keys.shape[1], indices.shape[1])
    own = _unsupported_lists(indices, **rest)
    own = own or _other_than_plain(softmax.require_heads(queries.shape[1]))
    own = own or _unsupported(queries, lists, keys=keys, values=values)
    if resolve(backend, queries, own) == "torch":
        return reference.gather_attention(
            queries,
            keys,
            values,
            indices,
            scaling=scaling,
            log_weights=log_weights,
            softmax=softmax,
            **rest,
        )
    from topkit.kernels.gather_attention import triton_impl

    return triton_impl.gather_attention(
        queries, keys, values, indices, scaling=scaling, log_weights=log_weights
    )


def attend_all(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    *,
    scaling: float,
    start: Tensor | None = None,
    stop: Tensor | None = None,
    softmax: Softmax = PLAIN,
    backend: str = "auto",
) -> Tensor:
    """The attention output of each query over all slots that it sees: what a selection is compared with.

    Shapes: queries, keys, values as `gather_attention`; start [B], stop [B or 1, Tq], query i sees the
    slots start <= s < stop[i] (None: all) -> [B, Hq, Tq, Dv] in queries' dtype.
    Raises: InputError where shapes, dtypes or devices do not belong together.
    """
    checks.tensors(queries=queries, keys=keys, values=values)
    nothing = keys.new_empty(len(queries), 1, queries.shape[2], 1, dtype=torch.int64)
    _check(queries, keys, values, nothing, None)
    check_window(start, stop, queries)
    own = _other_than_plain(softmax.require_heads(queries.shape[1]))
    own = own or _unsupported(queries, keys.shape[1], keys=keys, values=values)
    if resolve(backend, queries, own) == "torch":
        seen = {"start": start, "stop": stop}
        return reference.attend_all(queries, keys, values, scaling=scaling, softmax=softmax, **seen)
    from topkit.kernels.gather_attention import triton_impl

    return triton_impl.attend_all(queries, keys, values, scaling=scaling, start=start, stop=stop)


def gather_scores(
    queries: Tensor, keys: Tensor, indices: Tensor, *, backend: str = "torch"
) -> Tensor:
    """The dot products of each query with its chosen keys, [B, Hq, Tq, k] in float32; -inf for -1.

    Shapes: as `gather_attention`. The kernel takes keys of 16 bits; a slot beyond T is NaN there.
    """
    own = None
    if backend != "torch":
        _check(queries, keys, keys, indices, None)
        own = _unsupported(queries, max(keys.shape[1], indices.shape[1]), keys=keys)
    if backend == "torch" or resolve(backend, queries, own) == "torch":
        return reference.gather_scores(queries, keys, indices)
    from topkit.kernels.gather_attention import chosen_scores

    return chosen_scores.gather_scores(queries, keys, indices)


def _other_than_plain(softmax: Softmax) -> str | None:
    return None if softmax.plain else "softmax must be plain; got sinks or a softcap"


def _unsupported_lists(indices: Tensor, **rest: Tensor | None) -> str | None:
    """What the kernel does not take of lists and pseudo-keys, as a sentence."""
    for name, tensor in rest.items():
        if tensor is not None:
            return f"{name} must be None; got a tensor"
    if indices.shape[3] == 0:
        return "indices must hold at least one slot, or -1, a query; got k = 0"
    return None


def _unsupported(queries: Tensor, lists: int, **cache: Tensor) -> str | None:
    """What the kernels do not take though the definitions do, as a sentence."""
    rows = {"queries": queries, **cache}
    for name, tensor in rows.items():
        if tensor.dtype not in DTYPES or tensor.dtype != queries.dtype:
            return f"{name} must be bfloat16 or float16, all alike; got {tensor.dtype}"
        if tensor.shape[-1] not in WIDTHS:
            return f"{name} must have 64 or 128 dimensions; got {tensor.shape[-1]}"
    if reason := checks.unpacked(**rows) or checks.ungraded(**rows):
        return reason
    sharing = queries.shape[1] // max(1, lists)
    if sharing > MOST_HEADS:
        return f"queries must have at most {MOST_HEADS} heads to a list of indices; got {sharing}"
    return None


def _check_rest(
    queries: Tensor,
    values: Tensor,
    rest_values: Tensor | None,
    rest_logits: Tensor | None,
    rest_share: Tensor | None,
) -> None:
    """Refuses pseudo-keys that are not of these queries, or whose weight is not said in one way."""
    if rest_values is None and rest_logits is None and rest_share is None:
        return
    if rest_values is None or (rest_logits is None) == (rest_share is None):
        raise InputError("rest_values must come with one of rest_logits and rest_share")
    checks.dims("rest_values", rest_values, 5)
    checks.beside(
        queries.device, rest_values=rest_values, rest_logits=rest_logits, rest_share=rest_share
    )
    shape = (*queries.shape[:3], rest_values.shape[3])
    checks.shaped("rest_values", rest_values, (*shape, values.shape[3]))
    for name, tensor in {"rest_logits": rest_logits, "rest_share": rest_share}.items():
        if tensor is not None:
            checks.shaped(name, tensor, shape)


def _check(
    queries: Tensor, keys: Tensor, values: Tensor, indices: Tensor, log_weights: Tensor | None
) -> None:
    """Refuses tensors that do not belong together: nothing else would, before a wrong address."""
    named = {"queries": queries, "keys": keys, "values": values, "indices": indices}
    if log_weights is not None:
        named["log_weights"] = log_weights
    for name, tensor in named.items():
        checks.dims(name, tensor, 4)
    checks.beside(queries.device, **named)
    checks.typed("indices", indices, checks.PLACES)
    if log_weights is not None and not log_weights.is_floating_point():
        raise InputError(f"log_weights must be floating-point; got {log_weights.dtype}")
    batch, heads, count, width = queries.shape
    groups, length = keys.shape[1:3]
    if groups == 0 or heads % groups:
        raise InputError(f"keys must have a divisor of {heads} heads (query); got {groups}")
    if indices.shape[1] not in (heads, groups, 1):
        raise InputError(
            f"indices have {indices.shape[1]} heads; expected {heads} (query), {groups} (KV) or 1"
        )
    expected = {
        "keys": (1 if len(keys) == 1 else batch, groups, length, width),
        "values": (1 if len(values) == 1 else batch, groups, length, values.shape[3]),
        "indices": (batch, indices.shape[1], count, indices.shape[3]),
        "log_weights": tuple(indices.shape),
    }
    for name, tensor in named.items():
        if name in expected:
            checks.shaped(name, tensor, expected[name])
