# pyright: strict
"""The slots that each row sees: where it is said, and whether it can be."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from topkit.assertions.arrays import Array, places, within
from topkit.errors import InputError


@dataclass(frozen=True)
class Window:
    """The slots start <= s < stop that each query sees. Shapes: start [B], stop [B, Tq]."""

    start: Tensor
    stop: Tensor

    @property
    def ends(self) -> Tensor:
        """One past the last slot that any query of a row sees [B]."""
        return self.stop.amax(1)

    def to(self, device: torch.device) -> Window:
        return Window(self.start.to(device), self.stop.to(device))


def of_attention(
    queries: Tensor,
    keys: Tensor,
    lengths: Array | int | None,
    start: Array | None,
    stop: Array | None,
) -> Window:
    """What queries [B, Hq, Tq, D] see of keys [B or 1, Hk, T, D].

    Raises: InputError for shapes that do not fit, and places that are not there.
    """
    _check_shapes(queries, keys)
    rows, count, length = queries.shape[0], queries.shape[2], keys.shape[2]
    return of_queries(rows, count, length, lengths, start, stop).to(keys.device)


def of_queries(
    rows: int,
    count: int,
    length: int,
    lengths: Array | int | None,
    start: Array | None,
    stop: Array | None,
) -> Window:
    """What the `count` queries of each row see of `length` slots: the last of lengths, or of all.

    Raises: InputError for places that are not there.
    """
    if stop is not None and lengths is not None:
        raise InputError("give lengths or stop, not both: stop says it all")
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
    return Window(starts, stops)


def of_rows(shape: torch.Size, length: int, lengths: Array | int) -> Tensor:
    """How many slots each row of scores [..., T] sees, of one number a row [...].

    Raises: InputError where it is not one a row: whether the others of a batch are heads or queries is
    not known.
    """
    ends = places(lengths, "lengths").cpu()
    if ends.dim() not in {0, len(shape)} or not _spreads(ends, shape):
        raise InputError(
            f"lengths must be one number for each row of the scores, {list(shape)}; got "
            f"{list(ends.shape)} (scores [B, Hs, Tq, T] take lengths [B], the queries then the last Tq)"
        )
    within(ends, "lengths", 0, length, f"slots of {length} scores")
    return ends.expand(shape)


def _check_shapes(queries: Tensor, keys: Tensor) -> None:
    if queries.dim() != 4 or keys.dim() != 4:
        raise InputError(
            "queries must be [B, Hq, Tq, D] and keys [B or 1, Hk, T, D]; got "
            f"{list(queries.shape)} and {list(keys.shape)} ([tokens, heads, D] goes with cu_seqlens)"
        )
    (rows, heads, _, width), (batch, groups, length, _) = queries.shape, keys.shape
    if 0 in (rows, heads, queries.shape[2]):
        raise InputError(f"queries must hold at least one row; got {list(queries.shape)}")
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
    if not _spreads(x, shape):
        raise InputError(
            f"lengths and start must be [B], stop [B or 1, Tq]: {name} is {list(x.shape)}, "
            f"expected {list(shape)}"
        )
    return x.cpu().expand(shape)


def _spreads(x: Tensor, shape: tuple[int, ...]) -> bool:
    """Whether a tensor expands to a shape."""
    sizes = zip(reversed(x.shape), reversed(shape), strict=False)
    return x.dim() <= len(shape) and all(own in {1, size} for own, size in sizes)
