"""The form of what a recipe selected: types and shapes, before anything reads it.

Whether the slots are different ones that their queries see is `fidelity.validity`'s to say.
"""

# pyright: strict, reportUnnecessaryIsInstance=false
from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from topkit.errors import InputError
from topkit.indexers.base import Cache, Indexer, Rest, Selection

# By how much a sum of shares in float32 may exceed one.
ROUNDED = 1e-4


def require_formed(
    chosen: Any, ks: Sequence[int], indexer: Indexer, queries: Tensor, cache: Cache
) -> None:
    """Require a Selection at each k for queries [B, Hq, n, D] over the slots of a cache.

    Lists of another number of rows, or weights of another number of slots, would be read as if they
    were right.
    Raises: InputError by the indexer's name.
    """
    if not isinstance(chosen, Mapping):
        raise InputError(f"{indexer} gave {_kind(chosen)}; expected a Selection for each of {ks}")
    for k in ks:
        one: Any = chosen.get(k)  # type: ignore[reportUnknownMemberType]
        wrong = _wrong(one, queries, cache)
        if wrong:
            raise InputError(f"{indexer} gave {wrong}")


def _wrong(one: Any, queries: Tensor, cache: Cache) -> str:
    """The first fault of a selection, with what was expected; "" where there is none."""
    if not isinstance(one, Selection):
        return f"{_kind(one)}; expected a Selection"
    rows, heads, count = queries.shape[:3]
    shape = _shape(one.indices)
    lists = sorted({heads, cache.heads, 1})
    right = len(shape) == 4 and (shape[0], shape[2]) == (rows, count) and shape[1] in lists
    whole = right and not (one.indices.is_floating_point() or one.indices.is_complex())
    if not whole or one.indices.dtype == torch.bool:
        expected = f"whole numbers [{rows}, {' or '.join(map(str, lists))}, {count}, k]"
        return f"indices that are {_kind(one.indices)}; expected {expected}"
    logs = one.log_weights
    if logs is not None and (_shape(logs) != shape or not logs.is_floating_point()):
        return f"log_weights that are {_kind(logs)}; expected floats {list(shape)}, as its indices"
    if logs is not None and not bool((logs < math.inf).all()):
        return "log_weights that hold NaN or infinity; expected numbers, or -inf for no weight"
    for name in ("keys_scored", "bytes_read"):
        if wrong := _wrong_cost(getattr(one, name), rows, count):
            return f"{name} {wrong}"
    return (
        "" if one.rest is None else _wrong_rest(one.rest, (rows, heads, count), cache.value_width)
    )


def _wrong_cost(cost: Any, rows: int, count: int) -> str:
    if isinstance(cost, Tensor) and cost.ndim:
        right = _shape(cost) in ((rows, count), (1, count))
        return "" if right else f"{_kind(cost)}; expected [{rows} or 1, {count}]"
    if isinstance(cost, Tensor):  # of a GPU, whose value nobody waits for
        return ""
    right = isinstance(cost, int | float) and 0 <= cost < math.inf
    return "" if right else f"{cost!r}; expected a number of 0 or more, or a tensor of one a query"


def _wrong_rest(rest: Rest, place: tuple[int, int, int], width: int | None) -> str:
    values, shape = rest.values, _shape(rest.values)
    right = len(shape) == 5 and shape[:3] == place and width in (None, shape[4])
    if not right:
        expected = [*place, "r", "Dv" if width is None else width]
        return f"rest.values that are {_kind(values)}; expected [{', '.join(map(str, expected))}]"
    ways = [x for x in (rest.logits, rest.share) if x is not None]
    if len(ways) != 1 or _shape(ways[0]) != shape[:4]:
        return (
            f"a rest with {len(ways)} of logits and share; expected one of them, {list(shape[:4])}"
        )
    if not bool(values.isfinite().all() & (ways[0] < math.inf).all()):
        return "a rest that holds NaN or infinity; expected numbers"
    share = rest.share
    if share is not None and not bool(
        ((share >= 0).all(-1) & (share.sum(-1) <= 1 + ROUNDED)).all()
    ):
        return "a rest whose shares are below 0, or above 1 together; expected parts of the output"
    return ""


def _shape(x: Any) -> tuple[int, ...]:
    return tuple(x.shape) if isinstance(x, Tensor) else ()


def _kind(x: Any) -> str:
    if isinstance(x, Tensor):
        return f"{str(x.dtype).removeprefix('torch.')} {list(x.shape)}"
    return f"a {type(x).__name__}"
