# pyright: strict
"""The slots that each query sees: where it is said, and whether it can be."""

from __future__ import annotations

import torch
from torch import Tensor

from topkit.assertions.arrays import Array, places, within
from topkit.errors import InputError


def window(
    queries: Tensor,
    keys: Tensor,
    lengths: Array | None,
    start: Array | None,
    stop: Array | None,
) -> tuple[Tensor, Tensor]:
    """The first slot that each row sees [B], and one past the last of each query [B, Tq].

    Raises: InputError for shapes that do not fit, and places that are not there.
    """
    _check_shapes(queries, keys)
    if stop is not None and lengths is not None:
        raise InputError("give lengths or stop, not both: stop says it all")
    rows, count, length = queries.shape[0], queries.shape[2], keys.shape[2]
    stops = _stops(stop, rows, count, length) if stop is not None else None
    if stops is None:
        stops = _last(length if lengths is None else lengths, rows, count, length)
    starts = torch.zeros(rows, dtype=torch.long, device="cpu")
    if start is not None:
        starts = _spread(places(start, "start"), (rows,), "start")
        within(starts, "start", 0, length, f"slots of {length} keys")
        behind = starts > stops.amax(1)
        if bool(behind.any()):
            row = int(behind.nonzero()[0])
            raise InputError(
                f"start must not lie behind the last stop of its row; row {row} starts at "
                f"{int(starts[row])} and stops at {int(stops[row].amax())}"
            )
    return starts.to(keys.device), stops.to(keys.device)


def _check_shapes(queries: Tensor, keys: Tensor) -> None:
    if queries.dim() != 4 or keys.dim() != 4:
        raise InputError("queries must be [B, Hq, Tq, D] and keys [B or 1, Hk, T, D]")
    (rows, heads, _, width), (batch, groups, length, _) = queries.shape, keys.shape
    fit = groups > 0 and heads % groups == 0 and width == keys.shape[3] and batch in {1, rows}
    if not fit or length == 0 or width == 0:
        raise InputError(
            f"queries {list(queries.shape)} and keys {list(keys.shape)} do not fit: expected one "
            "batch and D of at least 1, and Hq a multiple of Hk"
        )


def _stops(stop: Array, rows: int, count: int, length: int) -> Tensor:
    stops = _spread(places(stop, "stop"), (rows, count), "stop")
    within(stops, "stop", 0, length, f"slots of {length} keys")
    return stops


def _last(lengths: Array | int, rows: int, count: int, length: int) -> Tensor:
    """Stops of queries that are the last of `lengths` slots; a row of no slot sees none."""
    ends = _spread(places(lengths, "lengths"), (rows,), "lengths")
    within(ends, "lengths", 0, length, f"slots of {length} keys")
    short = (ends < count) & (ends > 0)
    if bool(short.any()):
        raise InputError(
            f"lengths must hold the {count} queries, which are its last slots (or give stop); "
            f"got {int(ends[short][0])}"
        )
    stops = ends[:, None] - count + 1 + torch.arange(count, device="cpu")
    return stops.clamp_min(0)


def _spread(x: Tensor, shape: tuple[int, ...], name: str) -> Tensor:
    try:
        return x.cpu().expand(shape)
    except RuntimeError as error:
        raise InputError(
            f"lengths and start must be [B], stop [B or 1, Tq]: {name} is {list(x.shape)}, "
            f"expected {list(shape)}"
        ) from error
