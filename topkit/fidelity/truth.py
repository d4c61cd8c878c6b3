"""The exact rows that every selection is judged against, streamed over chunks of keys."""

# pyright: strict
from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from topkit.errors import InputError
from topkit.kernels.score import score

# Bytes that one chunk's scores and float32 copies may take together: the allocator keeps small
# blocks for the next chunk, and gets large ones from the system anew, page by page.
MEMORY = 1 << 28
NEVER = float("-inf")


@dataclass(frozen=True)
class Truth:
    """What is exact of each query row, in float32.

    Shapes: visible [B, Tq], keys that a query sees; scores [B, Hq, Tq, k], the best, unscaled and
    sorted, -inf where there are fewer; lse (of the scaled scores), largest (|score|) and entropy
    (nats) [B, Hq, Tq]; output [B, Hq, Tq, Dv], dense attention's.
    """

    scaling: float
    visible: Tensor
    scores: Tensor
    lse: Tensor
    largest: Tensor
    entropy: Tensor
    output: Tensor | None = None


@dataclass(frozen=True)
class UnitTruth:
    """The best of each unit's mean attention weights over its heads: weights [B, Hs, Tq, k], sorted."""

    weights: Tensor


def truth(
    queries: Tensor,
    keys: Tensor,
    values: Tensor | None,
    k: int,
    *,
    scaling: float,
    start: Tensor | None = None,
    stop: Tensor | None = None,
    layer: int | None = None,
    scores: Tensor | None = None,
    memory: int = MEMORY,
) -> Truth:
    """One pass over the keys, in memory that does not grow with their number.

    Shapes: queries [B, Hq, Tq, D], keys [B or 1, Hk, T, D], values [B or 1, Hk, T, Dv]; query i sees
    the slots start <= s < stop[i], as in a Step (start [B], stop [B or 1, Tq]; by default the
    queries are the last Tq slots); scores [B, Hq, Tq, T], all dot products where they are known already.
    Raises: InputError for NaN or infinity, naming layer and head.
    """
    rows, heads, count, _ = queries.shape
    length = keys.shape[2]
    best = queries.new_empty(rows, heads, count, 0, dtype=torch.float32)
    top = queries.new_full((rows, heads, count), NEVER, dtype=torch.float32)
    total, weighted, largest = torch.zeros_like(top), torch.zeros_like(top), torch.zeros_like(top)
    output = None
    for at, chunk, hidden in _chunks(queries, keys, values, start, stop, memory, scores):
        largest = largest.maximum(-chunk.amin(-1))
        if hidden is not None:
            chunk.masked_fill_(hidden, NEVER)
        best = _best(best, chunk, k)
        highest = best.amax(-1)
        largest = largest.maximum(highest)
        raised = top.maximum(highest * scaling)
        # A row that has seen nothing yet keeps its sums at zero.
        pivot = raised.masked_fill(raised == NEVER, 0.0)
        shrink = (top - pivot).exp()
        logits = torch.add(-pivot[..., None], chunk, alpha=scaling, out=chunk)
        weights = logits.exp()
        if hidden is not None:
            logits.masked_fill_(hidden, 0.0)
        more = weights.sum(-1)
        # By einsum, which makes no product of its own as vecdot does.
        weighted = weighted * shrink + torch.einsum("bhqt,bhqt->bhq", weights, logits)
        # The sum of logits is kept about the pivot, which has moved.
        weighted = weighted + total * shrink * (top - pivot).nan_to_num(neginf=0.0)
        total = total * shrink + more
        if values is not None:
            part = values[:, :, at : at + chunk.shape[-1]].float()
            grouped = weights.reshape(rows, keys.shape[1], -1, weights.shape[-1])
            added = (grouped @ part).view(rows, heads, count, -1)
            output = added if output is None else output * shrink[..., None] + added
        top = raised
    lse = top + total.log()
    visible = _seen(rows, count, length, start, stop, queries.device)
    _require_finite(lse, output, visible, layer)
    empty = (visible == 0)[:, None]
    return Truth(
        scaling,
        visible,
        best.sort(-1, descending=True).values,
        lse.masked_fill(empty, 0.0),
        largest,
        (total.log() - weighted / total).masked_fill(empty, 0.0).clamp_min(0.0),
        None if output is None else (output / total[..., None]).nan_to_num(0.0),
    )


def unit_truth(
    exact: Truth,
    queries: Tensor,
    keys: Tensor,
    k: int,
    units: int,
    *,
    start: Tensor | None = None,
    stop: Tensor | None = None,
    scores: Tensor | None = None,
    memory: int = MEMORY,
) -> UnitTruth:
    """The Top-k of the mean attention weights over each unit's heads: groups, or the whole layer.

    Shapes: as `truth`.
    """
    rows, _, count, _ = queries.shape
    best = queries.new_empty(rows, units, count, 0, dtype=torch.float32)
    for _, chunk, hidden in _chunks(queries, keys, None, start, stop, memory, scores):
        weights = chunk.mul_(exact.scaling).sub_(exact.lse[..., None]).exp_()
        if hidden is not None:
            weights.masked_fill_(hidden, 0.0)
        by_unit = torch.unflatten(weights, 1, (units, -1))
        best = _best(best, by_unit.mean(2), k)
    return UnitTruth(best.sort(-1, descending=True).values)


def _best(before: Tensor, chunk: Tensor, k: int) -> Tensor:
    """The k best of both, in no order: sorting each time would cost as much as finding them."""
    both = torch.cat([before, chunk], -1)
    return both.topk(min(k, both.shape[-1]), dim=-1, sorted=False).values


def _chunks(
    queries: Tensor,
    keys: Tensor,
    values: Tensor | None,
    start: Tensor | None,
    stop: Tensor | None,
    memory: int,
    scores: Tensor | None = None,
) -> Iterator[tuple[int, Tensor, Tensor | None]]:
    """(first slot, scores [B, Hq, Tq, c], which are hidden or None) chunk by chunk."""
    rows, heads, count, width = queries.shape
    length = keys.shape[2]
    stops = _stops(length, count, stop, queries.device)
    starts = torch.zeros(1, dtype=torch.long, device=queries.device) if start is None else start
    wide = width + (0 if values is None else values.shape[3])
    a_slot = 4 * (5 * rows * heads * count + 2 * keys.shape[0] * keys.shape[1] * wide)
    step = max(1, min(length, memory // a_slot))
    always = int(stops.min()), int(starts.max())
    at, end = 0, min(length, int(stops.max()))
    while at < end:
        until = min(at + step, length)
        # What every query sees stands in chunks of its own, and needs no mask.
        until = min([until, *(edge for edge in always if at < edge < until)])
        # A copy of what is known: a chunk is written to.
        chunk = (
            score(queries, keys[:, :, at:until])
            if scores is None
            else scores[..., at:until].clone()
        )
        hidden = None
        if until > always[0] or at < always[1]:
            slots = torch.arange(at, until, device=queries.device)
            hidden = (slots >= stops[:, None, :, None]) | (slots < starts[:, None, None, None])
            # Hidden keys may hold anything, and must not count as the largest score.
            chunk.masked_fill_(hidden, 0.0)
        yield at, chunk, hidden
        at = until


def _stops(length: int, count: int, stop: Tensor | None, device: torch.device) -> Tensor:
    if stop is not None:
        return stop.to(device)
    return torch.arange(length - count + 1, length + 1, device=device)[None]


def _seen(
    rows: int,
    count: int,
    length: int,
    start: Tensor | None,
    stop: Tensor | None,
    device: torch.device,
) -> Tensor:
    stops = _stops(length, count, stop, device).clamp(0, length)
    seen = stops - (0 if start is None else start[:, None])
    return seen.clamp_min(0).expand(rows, count)


def _require_finite(lse: Tensor, output: Tensor | None, visible: Tensor, layer: int | None) -> None:
    sees = (visible > 0)[:, None].expand_as(lse)
    bad = sees & ~lse.isfinite()
    what = "queries or keys"
    if not bad.any() and output is not None:
        bad, what = sees & ~output.isfinite().all(-1), "values"
    if bad.any():
        head = int(bad.nonzero()[0, 1])
        where = f"head {head}" if layer is None else f"layer {layer}, head {head}"
        raise InputError(f"{what} hold NaN or infinity in {where}; repair the tensors first")
