"""The exact rows that every selection is judged against, streamed over chunks of keys."""

# pyright: strict
from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from topkit.errors import InputError
from topkit.fidelity.ties import NEVER, floors
from topkit.kernels.precision import full_precision
from topkit.kernels.rounding import TOLERANCE, Rounding
from topkit.kernels.score import score

# Bytes that one chunk's scores and float32 copies may take together: the allocator keeps small
# blocks for the next chunk, and gets large ones from the system anew, page by page.
MEMORY = 1 << 28
# Gives the sums [B, Hq, Tq, Dv] of the values of slots, by weights [B, Hq, Tq, n] of those from a slot on.
Weigh = Callable[[Tensor, int], Tensor]
LEAST = torch.finfo(torch.float32).min


@dataclass(frozen=True)
class Truth:
    """What is exact of each query row, in float32.

    Shapes: visible [B, Tq], keys that a query sees; start [B or 1] and stop [B or 1, Tq], the slots
    start <= s < stop that they are; scores [B, Hq, Tq, k], the best, unscaled and sorted, -inf where
    there are fewer; floors [B, Hq, Tq, k], what the m best reach however they were rounded; heaviest
    [B, Hq, Tq], the slot of the best; offset, the best scaled score, total, the sum of all weights
    about it, lse (of the scaled scores) and entropy (nats) [B, Hq, Tq]; output [B, Hq, Tq, Dv], dense
    attention's.
    """

    scaling: float
    visible: Tensor
    start: Tensor
    stop: Tensor
    scores: Tensor
    floors: Tensor
    heaviest: Tensor
    offset: Tensor
    total: Tensor
    entropy: Tensor
    rounding: Rounding
    output: Tensor | None = None

    @property
    def lse(self) -> Tensor:
        return self.offset + self.total.log()

    def log_weights(self, scores: Tensor) -> Tensor:
        """The logarithms of the attention weights of scores [B, Hq, Tq, n], made as `total` was."""
        logits = torch.add(-self.offset[..., None], scores, alpha=self.scaling)
        return logits - self.total.log()[..., None]

    def of(self, rows: slice | Tensor) -> Truth:
        """That of some of the rows."""
        mine = {
            name: getattr(self, name)[rows]
            for name in ("visible", "scores", "floors", "heaviest", "offset", "total", "entropy")
        }
        return replace(
            self,
            **mine,
            start=self.start if len(self.start) == 1 else self.start[rows],
            stop=self.stop if len(self.stop) == 1 else self.stop[rows],
            rounding=self.rounding.of_rows(rows),
            output=None if self.output is None else self.output[rows],
        )


@dataclass(frozen=True)
class UnitTruth:
    """The best of the logarithms of each unit's mean attention weights over its heads.

    Shapes: weights [B, Hs, Tq, k], sorted; floors [B, Hs, Tq, k], what the m best reach however they
    were rounded.
    """

    weights: Tensor
    floors: Tensor


@full_precision()
def truth(
    queries: Tensor,
    keys: Tensor | None,
    values: Tensor | None,
    k: int,
    *,
    scaling: float,
    start: Tensor | None = None,
    stop: Tensor | None = None,
    layer: int | None = None,
    scores: Tensor | None = None,
    rounding: Rounding | None = None,
    weigh: Weigh | None = None,
    memory: int = MEMORY,
) -> Truth:
    """One pass over the keys, in memory that does not grow with their number.

    Shapes: queries [B, Hq, Tq, D], keys [B or 1, Hk, T, D], values [B or 1, Hk, T, Dv]; query i sees
    the slots start <= s < stop[i], as in a Step (start [B], stop [B or 1, Tq]; by default the
    queries are the last Tq slots); scores [B, Hq, Tq, T], all dot products where they are known already,
    and rounding, what these may be off by: keys are then not read. weigh stands in the place of values.
    Raises: InputError for NaN or infinity, naming layer and head.
    """
    rows, heads, count, _ = queries.shape
    length = _length(keys, scores)
    if values is not None:
        weigh = _by(values)
    start, stop = _window(length, count, start, stop, queries.device)
    best = None
    top = queries.new_full((rows, heads, count), NEVER, dtype=torch.float32)
    total, weighted = torch.zeros_like(top), torch.zeros_like(top)
    output = None
    wide = 0 if values is None else values.shape[3]
    for at, chunk, hidden in _chunks(queries, keys, start, stop, memory, scores, wide):
        best = _best(best, chunk, at, k + 1)
        raised = top.maximum(best.values.amax(-1) * scaling)
        # A row that has seen nothing yet keeps its sums at zero.
        pivot = raised.masked_fill(raised == NEVER, 0.0)
        shrink = (top - pivot).exp()
        logits = torch.add(-pivot[..., None], chunk, alpha=scaling, out=chunk)
        weights = logits.exp()
        if hidden is not None:
            logits[..., -hidden.shape[-1] :].masked_fill_(hidden, 0.0)
        more = weights.sum(-1)
        # By einsum, which makes no product of its own as vecdot does.
        weighted = weighted * shrink + torch.einsum("bhqt,bhqt->bhq", weights, logits)
        # The sum of logits is kept about the pivot, which has moved.
        weighted = weighted + total * shrink * (top - pivot).nan_to_num(neginf=0.0)
        total = total * shrink + more
        if weigh is not None:
            added = weigh(weights, at)
            output = added if output is None else output * shrink[..., None] + added
        top = raised
    visible = (stop.clamp(0, length) - start[:, None]).clamp_min(0).expand(rows, count)
    # A weight of zero times a score of -inf shows in `weighted` alone.
    _require_finite(top + total.log() + weighted, output, visible, layer)
    empty = (visible == 0)[:, None]
    entropy = (total.log() - weighted / total).masked_fill(empty, 0.0).clamp_min(0.0)
    output = None if output is None else (output / total[..., None]).nan_to_num(0.0)
    if rounding is None:
        assert keys is not None
        rounding = Rounding.of(queries, keys)
    best = (best or _nothing(top)).sorted()
    return Truth(
        scaling,
        visible,
        start,
        stop,
        best.values[..., :k],
        floors(best.values, rounding.at(best.slots), k),
        best.slots[..., 0],
        top.masked_fill(empty, 0.0),
        total.masked_fill(empty, 1.0),
        entropy,
        rounding,
        output,
    )


def with_sinks(exact: Truth, sinks: Tensor) -> Truth:
    """What is exact where a logit of no key [B, Hq, Tq] has its part of the weights.

    The entropy stays that of the keys among themselves.
    """
    top = torch.maximum(exact.offset, sinks.float())
    of_keys = exact.total * (exact.offset - top).exp()
    # A query that sees no key has nothing but its sink.
    of_keys = of_keys.masked_fill((exact.visible == 0)[:, None], 0.0)
    total = of_keys + (sinks.float() - top).exp()
    output = None if exact.output is None else exact.output * (of_keys / total)[..., None]
    return replace(exact, offset=top, total=total, output=output)


@full_precision()
def unit_truth(
    exact: Truth,
    queries: Tensor,
    keys: Tensor | None,
    k: int,
    units: int,
    *,
    scores: Tensor | None = None,
    memory: int = MEMORY,
) -> UnitTruth:
    """The Top-k of the mean attention weights over each unit's heads: groups, or the whole layer.

    Shapes: as `truth`.
    """
    best = None
    for at, chunk, _ in _chunks(queries, keys, exact.start, exact.stop, memory, scores):
        torch.add(-exact.offset[..., None], chunk, alpha=exact.scaling, out=chunk)
        chunk.sub_(exact.total.log()[..., None])
        best = _best(best, log_mean(chunk, units), at, k + 1)
    best = (best or _nothing(exact.total[:, :units])).sorted()
    off = unit_rounding(exact, best.slots)
    return UnitTruth(best.values[..., :k], floors(best.values, off, k))


def log_mean(logs: Tensor, units: int) -> Tensor:
    """The logarithm of the mean weight over each unit's heads [B, units, Tq, n], of logs [B, Hq, Tq, n].

    By logarithms, since beside one heavy key the weights of all others are no floats. Writes over `logs`.
    """
    by_unit = torch.unflatten(logs, 1, (units, -1))
    top = by_unit.amax(2, keepdim=True).clamp_min(LEAST)
    return by_unit.sub_(top).exp_().mean(2).log_().add_(top.squeeze(2))


def unit_rounding(exact: Truth, slots: Tensor) -> Tensor:
    """What the logarithms of the mean weights of slots [B, units, Tq, n] may be off by."""
    by_head = torch.unflatten(exact.rounding.at(slots), 1, (slots.shape[1], -1))
    return TOLERANCE + exact.scaling * by_head.amax(2)


@dataclass(frozen=True)
class _Best:
    """The best scores so far and their slots [B, H, Tq, n]."""

    values: Tensor
    slots: Tensor

    def sorted(self) -> _Best:
        values, order = self.values.sort(-1, descending=True)
        return _Best(values, self.slots.gather(-1, order))


def _best(before: _Best | None, chunk: Tensor, at: int, k: int) -> _Best:
    """The k best of both, in no order: sorting each time would cost as much as finding them."""
    if before is None:
        values, slots = chunk.topk(min(k, chunk.shape[-1]), dim=-1, sorted=False)
        return _Best(values, slots + at)
    both, old = torch.cat([before.values, chunk], -1), before.values.shape[-1]
    values, place = both.topk(min(k, both.shape[-1]), dim=-1, sorted=False)
    kept = before.slots.gather(-1, place.clamp_max(old - 1))
    return _Best(values, kept.where(place < old, place - old + at))


def _nothing(like: Tensor) -> _Best:
    """Of a cache without slots that anybody sees: one place, empty."""
    never = torch.full_like(like[..., None], NEVER)
    return _Best(never, torch.zeros_like(never, dtype=torch.long))


def _by(values: Tensor) -> Weigh:
    """The sums of values [B or 1, Hk, T, Dv]."""

    def weigh(weights: Tensor, at: int) -> Tensor:
        rows, heads, count, width = weights.shape
        grouped = weights.reshape(rows, values.shape[1], -1, width)
        part = values[:, :, at : at + width].float()
        return (grouped @ part).view(rows, heads, count, -1)

    return weigh


def _length(keys: Tensor | None, scores: Tensor | None) -> int:
    if scores is not None:
        return scores.shape[3]
    assert keys is not None
    return keys.shape[2]


def _chunks(
    queries: Tensor,
    keys: Tensor | None,
    start: Tensor,
    stop: Tensor,
    memory: int,
    scores: Tensor | None = None,
    wide: int = 0,
) -> Iterator[tuple[int, Tensor, Tensor | None]]:
    """(first slot, scores [B, Hq, Tq, c], which of the last are hidden or None) chunk by chunk.

    `wide` values lie beside the keys.
    """
    rows, heads, count, width = queries.shape
    length = _length(keys, scores)
    copied = 0 if keys is None else 2 * keys.shape[0] * keys.shape[1] * (width + wide)
    a_slot = 4 * (5 * rows * heads * count + copied)
    step = max(1, min(length, memory // a_slot))
    first, last = int(start.max()), int(stop.min())  # between them every query sees all
    at, end = 0, min(length, int(stop.max()))
    while at < end:
        until = min(at + step, length)
        # Padding stands in chunks of its own: behind it a mask of the last slots is enough.
        if at < first:
            until = min(until, first)
        # A copy of what is known: a chunk is written to.
        if scores is None:
            assert keys is not None
            chunk = score(queries, keys[:, :, at:until])
        else:
            chunk = scores[..., at:until].clone()
        hidden = None
        if until > last or at < first:
            slots = torch.arange(at if at < first else max(at, last), until, device=queries.device)
            hidden = (slots >= stop[:, None, :, None]) | (slots < start[:, None, None, None])
            chunk[..., -len(slots) :].masked_fill_(hidden, NEVER)
        yield at, chunk, hidden
        at = until


def _window(
    length: int, count: int, start: Tensor | None, stop: Tensor | None, device: torch.device
) -> tuple[Tensor, Tensor]:
    """The slots that queries see: the first [B or 1], and one past the last [B or 1, Tq]."""
    if start is None:
        start = torch.zeros(1, dtype=torch.long, device=device)
    if stop is None:
        stop = torch.arange(length - count + 1, length + 1, device=device)[None]
    return start.to(device), stop.to(device)


def _require_finite(
    sums: Tensor, output: Tensor | None, visible: Tensor, layer: int | None
) -> None:
    sees = (visible > 0)[:, None].expand_as(sums)
    bad = sees & ~sums.isfinite()
    what = "queries or keys"
    if not bad.any() and output is not None:
        bad, what = sees & ~output.isfinite().all(-1), "values"
    if bad.any():
        head = int(bad.nonzero()[0, 1])
        where = f"head {head}" if layer is None else f"layer {layer}, head {head}"
        raise InputError(f"{what} hold NaN or infinity in {where}; repair the tensors first")
