"""The exact rows that every selection is judged against, streamed over chunks of keys."""

# pyright: strict
from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from topkit.errors import InputError
from topkit.fidelity.sums import (
    Best,
    Source,
    Weigh,
    best_of,
    bests,
    joined,
    length_of,
    nothing,
    rows_of,
)
from topkit.fidelity.ties import floors
from topkit.kernels.precision import full_precision
from topkit.kernels.rounding import TOLERANCE, Rounding

# Bytes that one chunk's scores and float32 copies may take together: the allocator keeps small
# blocks for the next chunk, and gets large ones from the system anew, page by page.
MEMORY = 1 << 28
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
    rows, count, length = len(queries), queries.shape[2], length_of(keys, scores)
    start, stop = _window(length, count, start, stop, queries.device)
    if values is not None:
        weigh = _by(values)
    wide = 0 if values is None else values.shape[3]
    source = Source.over(queries, keys, scores, start, stop, memory, wide)
    sums = joined([source.of(part).summed(k + 1, scaling, weigh, part) for part in source.blocks])
    top, total, weighted, output = sums.top, sums.total, sums.weighted, sums.output
    visible = (stop.clamp(0, length) - start[:, None]).clamp_min(0).expand(rows, count)
    # A weight of zero times a score of -inf shows in `weighted` alone.
    _require_finite(top + total.log() + weighted, output, visible, layer)
    empty = (visible == 0)[:, None]
    entropy = (total.log() - weighted / total).masked_fill(empty, 0.0).clamp_min(0.0)
    output = None if output is None else (output / total[..., None]).nan_to_num(0.0)
    if rounding is None:
        assert keys is not None
        rounding = Rounding.of(queries, keys)
    best = sums.best.sorted()
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
    source = Source.over(queries, keys, scores, exact.start, exact.stop, memory)

    def best(part: slice) -> Best:
        offset, total = exact.offset[part, ..., None], exact.total[part].log()[..., None]
        best = None
        for at, chunk, _ in source.of(part).chunks():
            torch.add(-offset, chunk, alpha=exact.scaling, out=chunk)
            best = best_of(best, log_mean(chunk.sub_(total), units), at, k + 1)
        return best or nothing(total[:, :units, :, 0])

    every = bests([best(part) for part in source.blocks]).sorted()
    off = unit_rounding(exact, every.slots)
    return UnitTruth(every.values[..., :k], floors(every.values, off, k))


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


def _by(values: Tensor) -> Weigh:
    """The sums of values [B or 1, Hk, T, Dv]."""

    def weigh(weights: Tensor, at: int, part: slice) -> Tensor:
        rows, heads, count, width = weights.shape
        grouped = weights.reshape(rows, values.shape[1], -1, width)
        own = rows_of(values, part)[:, :, at : at + width].float()
        return (grouped @ own).view(rows, heads, count, -1)

    return weigh


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
        raise InputError(
            f"{what} hold NaN or infinity in {where}, or numbers whose products float32 cannot hold; repair the "
            "tensors first"
        )
