# pyright: strict
"""The exact scores of all rows, block by block, and how far float32 may have them wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

from topkit.assertions.demand import Demand
from topkit.assertions.window import Window
from topkit.errors import InputError
from topkit.kernels.rounding import norms
from topkit.kernels.score import score

NEVER = float("-inf")


@dataclass(frozen=True)
class Rows:
    """Scores, and by how much each may be off: two are one where what they may be off by meets.

    Shapes: scores, doubt [n, T], finite doubt.
    """

    scores: Tensor
    doubt: Tensor

    def __len__(self) -> int:
        return len(self.scores)

    def row(self, i: int) -> Rows:
        return Rows(self.scores[i], self.doubt[i])


@dataclass(frozen=True)
class Exact:
    """All rows, and what their scores weigh in attention.

    Shapes: shape, that of the rows, its dimensions named by axes; blocks in order; weights [n, T] -> [n, T].
    """

    shape: torch.Size
    axes: tuple[str, ...]
    blocks: Iterator[Rows]
    weights: Callable[[Tensor], Tensor]


def of_scores(scores: Tensor, demand: Demand, seen: Window | None, block: int) -> Exact:
    """Rows of scores [..., T], at most `block` of them at a time.

    seen: what each row sees, start and stop in the shape of the rows; None: all.
    """
    shape, length = scores.shape[:-1], scores.shape[-1]
    if scores.dtype != torch.float64:
        scores = scores.float() if scores.is_floating_point() else scores.double()
    scale = 1.0 if demand.scaling is None else demand.scaling
    each = max(1, block // length)
    bounds = None
    if seen is not None:
        device = scores.device
        bounds = seen.start.reshape(-1, 1).to(device), seen.stop.reshape(-1, 1).to(device)

    def blocks() -> Iterator[Rows]:
        slots = torch.arange(length, device=scores.device)
        for number, some in enumerate(torch.split(scores.reshape(-1, length), each)):
            if bounds is not None:
                own = slice(number * each, number * each + len(some))
                some = some.masked_fill((slots < bounds[0][own]) | (slots >= bounds[1][own]), NEVER)
            yield Rows(some, _doubt(some.abs(), demand))

    return Exact(shape, axes_of(shape), blocks(), lambda x: (x * scale).softmax(-1))


def axes_of(shape: torch.Size) -> tuple[str, ...]:
    """The names of the dimensions of rows of scores: those of [B, Hs, Tq], or numbers."""
    known = {1: ("row",), 3: ("batch", "head", "query")}
    return known.get(len(shape), tuple(f"dimension {place}" for place in range(len(shape))))


def of_attention(
    queries: Tensor,
    keys: Tensor,
    lists: int,
    demand: Demand,
    seen: Window,
    block: int,
) -> Exact:
    """Rows [B, Hs, Tq] of dot products, or of mean weights where heads share a list.

    Shapes: queries [B, Hq, Tq, D]; keys [B or 1, Hk, T, D].
    """
    rows, heads, count, width = queries.shape
    groups, length = keys.shape[1:3]
    scale = width**-0.5 if demand.scaling is None else demand.scaling
    if lists not in {heads, groups, 1}:
        raise InputError(
            f"indices must be [B, Hs, Tq, k], Hs one of {sorted({1, groups, heads})}; got Hs {lists}"
        )
    per = heads // lists
    if per > 1 and scale == 0:
        raise InputError("scaling must be above 0: a shared list is judged by weights; got 0")
    each = max(1, block // (per * length))
    start, stop = seen.start, seen.stop
    unit = {1: "list", groups: "group", heads: "head"}[lists]

    def blocks() -> Iterator[Rows]:
        slots = torch.arange(length, device=keys.device)
        for row, number, at in product(range(rows), range(lists), range(0, count, each)):
            own = slice(number * per, (number + 1) * per)
            read = slice(own.start * groups // heads, (own.stop * groups - 1) // heads + 1)
            some = queries[row, own, at : at + each].to(keys.device)
            hidden = (slots >= stop[row, at : at + each, None]) | (slots < start[row])
            own_keys = keys[min(row, len(keys) - 1), read]
            yield _scored(some, own_keys, hidden, scale, demand)

    def weights(logits: Tensor) -> Tensor:
        return logits.clamp_min(0) if per > 1 else (logits * scale).softmax(-1)

    shape = torch.Size((rows, lists, count))
    return Exact(shape, ("batch", unit, "query"), blocks(), weights)


def _scored(queries: Tensor, keys: Tensor, hidden: Tensor, scale: float, demand: Demand) -> Rows:
    """Rows of the heads of one list. Shapes: queries [h, n, D], keys [g, T, D], hidden [n, T]."""
    logits = score(queries[None], keys[None])[0].masked_fill(hidden, NEVER)
    by_head = norms(keys).repeat_interleave(len(queries) // len(keys), 0)
    doubt = _doubt(norms(queries)[:, :, None] * by_head[:, None], demand)
    doubt = doubt.masked_fill(hidden, 0)
    if len(queries) == 1:
        return Rows(logits[0], doubt[0])
    weights = (logits * scale).softmax(-1)
    # A weight is off by a share of itself: what its own score is off by, and the sum of them all.
    shares = scale * doubt
    shares = shares + (weights * shares).sum(-1, keepdim=True) + demand.tolerance
    doubt = (weights * shares).mean(0).nan_to_num(0, 0, 0)
    return Rows(weights.mean(0).masked_fill(hidden, NEVER), doubt)


def _doubt(magnitude: Tensor, demand: Demand) -> Tensor:
    """What scores of these magnitudes may be off by."""
    return (demand.tolerance * magnitude).nan_to_num(0, 0, 0)
