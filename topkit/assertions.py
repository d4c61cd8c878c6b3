"""Holding the output of a selection kernel to the exact scores."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import torch
from torch import Tensor

from topkit.errors import InputError
from topkit.fidelity.metrics import TOLERANCE
from topkit.kernels.score import score

Array = Tensor | np.ndarray | Sequence[Any]
NEVER = float("-inf")
# Scores in memory at a time.
BLOCK = 1 << 26


def assert_selects(
    indices: Array,
    scores: Array | None = None,
    *,
    queries: Array | None = None,
    keys: Array | None = None,
    k: int | None = None,
    recall: float | None = None,
    mass: float | None = None,
    scaling: float | None = None,
    lengths: Array | None = None,
    start: Array | None = None,
    stop: Array | None = None,
    tolerance: float | None = None,
) -> None:
    """Require that a kernel chose the exact Top-k, or near enough to it, on every single row.

    Exact is judged by score: the scores chosen, sorted, must be the k best, so that among equal
    scores any will do, in any order. recall=0.99 or mass=0.95 ask for that much instead, again on
    every row, not on average: recall is the share of the Top-k chosen, ties forgiven; mass is the
    attention weight of what was chosen. min(k, visible) different visible slots are due, and -1
    stands for none: one that is due is missed, which exactness does not allow. k: by default the
    width of indices.
    tolerance: scores closer than this share of the row's largest are one; by default 1e-6, the
    doubt of float32, for queries and keys, and 0 for scores.

    Shapes: indices [..., w] beside scores [..., T], -inf where a slot may not be chosen; or indices
    [B, Hs, Tq, w], Hs in {Hq, Hk, 1}, beside queries [B, Hq, Tq, D] and keys [B or 1, Hk, T, D]. Query
    i then sees the slots start <= s < stop[i] (start [B], stop [B or 1, Tq]); by default the queries
    are the last Tq of T slots, or of lengths [B]. A list that several heads share is judged by the
    mean of their attention weights. scaling, of the weights: D ** -0.5, or 1 for scores.
    Raises: AssertionError with the facts of the worst row; InputError for what cannot be judged.
    """
    picked = _tensor(indices, "indices")
    if picked.is_floating_point() or picked.dtype == torch.bool or picked.dim() == 0:
        raise InputError(f"indices must be integers [..., k]; got {picked.dtype}")
    if tolerance is None:
        tolerance = TOLERANCE if scores is None else 0.0
    demand = _Demand(picked.shape[-1] if k is None else k, recall, mass, tolerance)
    if scores is None:
        if queries is None or keys is None:
            raise InputError("expected scores, or queries and keys")
        q, x = _tensor(queries, "queries"), _tensor(keys, "keys")
        bounds = _bounds(q, x, lengths, start, stop)
        exact = _of_attention(q, x, picked.shape[1:2].numel(), scaling, *bounds)
    elif all(x is None for x in (queries, keys, lengths, start, stop)):
        exact = _of_scores(_tensor(scores, "scores"), 1.0 if scaling is None else scaling)
    else:
        raise InputError(
            "scores say by -inf what is not visible: give them alone, or else queries and keys"
        )
    if picked.shape[:-1] != exact.shape or exact.shape.numel() == 0:
        raise InputError(
            f"indices {list(picked.shape)} must be {[*exact.shape, 'k']} beside these scores, "
            "and hold at least one row"
        )
    _require(picked.long().reshape(exact.shape.numel(), picked.shape[-1]), exact, demand)


@dataclass(frozen=True)
class _Demand:
    """What every row must keep to."""

    k: int
    recall: float | None
    mass: float | None
    tolerance: float

    def __post_init__(self) -> None:
        if self.k < 1:
            raise InputError(f"k must be at least 1; got {self.k}")
        for name, least in (("recall", self.recall), ("mass", self.mass)):
            if least is not None and not 0 < least <= 1:
                raise InputError(f"{name} must lie above 0 and not above 1; got {least}")

    def __str__(self) -> str:
        least = {"recall": self.recall, "mass": self.mass}
        said = [f"{name} of at least {x:g}" for name, x in least.items() if x is not None]
        return " and ".join(said) or "the exact Top-k by score"


@dataclass(frozen=True)
class _Exact:
    """The scores of all rows, block by block, and what they weigh in attention.

    Shapes: shape, that of the rows; blocks [n, T] each, rows in order; weights [n, T] -> [n, T].
    """

    shape: torch.Size
    blocks: Iterator[Tensor]
    weights: Callable[[Tensor], Tensor]


def _of_scores(scores: Tensor, scaling: float) -> _Exact:
    length = scores.shape[-1] if scores.dim() else 0
    if length == 0:
        raise InputError(f"scores must be [..., T], T at least 1; got {list(scores.shape)}")
    if scores.dtype != torch.float64:
        scores = scores.float() if scores.is_floating_point() else scores.double()
    blocks = scores.reshape(-1, length).split(max(1, BLOCK // length))
    return _Exact(scores.shape[:-1], iter(blocks), lambda x: (x * scaling).softmax(-1))


def _of_attention(
    queries: Tensor,
    keys: Tensor,
    lists: int,
    scaling: float | None,
    start: Tensor,
    stop: Tensor,
) -> _Exact:
    rows, heads, count, width = queries.shape
    groups, length = keys.shape[1:3]
    scale = width**-0.5 if scaling is None else scaling
    if lists not in {heads, groups, 1}:
        raise InputError(
            f"indices must be [B, Hs, Tq, k], Hs one of {sorted({1, groups, heads})}; got Hs {lists}"
        )
    per = heads // lists
    each = max(1, BLOCK // (per * length))

    def blocks() -> Iterator[Tensor]:
        slots = torch.arange(length, device=keys.device)
        for row, unit, at in product(range(rows), range(lists), range(0, count, each)):
            own = slice(unit * per, (unit + 1) * per)
            read = slice(own.start * groups // heads, (own.stop * groups - 1) // heads + 1)
            mine = keys[min(row, len(keys) - 1), read]
            logits = score(queries[row, own, at : at + each][None], mine[None])[0]
            stops = stop[row, at : at + each, None]
            hidden = (slots >= stops) | (slots < start[row])
            logits = logits.masked_fill(hidden, NEVER)
            if per > 1:
                logits = (logits * scale).softmax(-1)
            yield logits.mean(0).masked_fill(hidden, NEVER)

    def weights(logits: Tensor) -> Tensor:
        return logits.clamp_min(0) if per > 1 else (logits * scale).softmax(-1)

    return _Exact(torch.Size((rows, lists, count)), blocks(), weights)


def _bounds(
    queries: Tensor,
    keys: Tensor,
    lengths: Array | None,
    start: Array | None,
    stop: Array | None,
) -> tuple[Tensor, Tensor]:
    """The first slot that each row sees [B], and one past the last of each query [B, Tq]."""
    if queries.dim() != 4 or keys.dim() != 4:
        raise InputError("queries must be [B, Hq, Tq, D] and keys [B or 1, Hk, T, D]")
    (rows, heads, count, width), (batch, groups, length, _) = queries.shape, keys.shape
    if heads % groups or width != keys.shape[3] or batch not in {1, rows} or length == 0:
        raise InputError(
            f"queries {list(queries.shape)} and keys {list(keys.shape)} do not fit: expected one "
            "batch and D, and Hq a multiple of Hk"
        )
    if stop is not None and lengths is not None:
        raise InputError("give lengths or stop, not both: stop says it all")
    try:
        ends = torch.as_tensor(length if lengths is None else _tensor(lengths, "lengths"))
        last = ends.to(keys.device).expand(rows)[:, None] - count + 1
        stops = last + torch.arange(count, device=keys.device)
        if stop is not None:
            stops = _tensor(stop, "stop").to(keys.device).expand(rows, count)
        starts = torch.zeros(1) if start is None else _tensor(start, "start")
        return starts.to(keys.device).expand(rows), stops
    except RuntimeError as error:
        raise InputError(f"lengths and start must be [B], stop [B or 1, Tq]: {error}") from error


def _tensor(x: Array, name: str) -> Tensor:
    if isinstance(x, Tensor):
        return x.detach()
    if not isinstance(x, (np.ndarray, np.number, list, tuple, int)):
        raise InputError(f"{name} must be a torch tensor or numpy array; got {type(x).__name__}")
    # A copy, because torch wants an array that is writable and has no negative strides.
    return torch.from_numpy(np.array(x))


def _require(indices: Tensor, exact: _Exact, demand: _Demand) -> None:
    """Go through all blocks and fail with the worst row of all."""
    at, failing, worst = 0, 0, (0.0, 0, indices[0], indices[0])
    for scores in exact.blocks:
        picked = indices[at : at + len(scores)].to(scores.device)
        faults = _faults(picked, scores, exact.weights, demand)
        failing += int((faults > 0).sum())
        row = int(faults.argmax())
        if faults[row] > worst[0]:
            worst = (float(faults[row]), at + row, picked[row], scores[row])
        at += len(scores)
    if failing:
        place = tuple(int(i) for i in np.unravel_index(worst[1], exact.shape))
        facts = _facts(worst[2], worst[3], exact.weights, demand)
        raise AssertionError(
            f"{demand} was asked of every row; {failing} of {len(indices)} fail, "
            f"the worst is row {place}:\n  " + "\n  ".join(facts)
        )


def _faults(
    indices: Tensor, scores: Tensor, weights: Callable[[Tensor], Tensor], demand: _Demand
) -> Tensor:
    """How wrong each row is [n]: 0 right, below 1 a poor choice, else so many broken slots."""
    length = scores.shape[-1]
    wanted = (scores > NEVER).sum(-1).clamp_max(demand.k)
    inside = (indices >= 0) & (indices < length)
    chosen = scores.gather(-1, indices.clamp(0, length - 1)).masked_fill(~inside, NEVER)
    ordered = indices.masked_fill(~inside, -1).sort(-1).values
    twice = (ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)
    broken = ((indices != -1) & ~(chosen > NEVER)).sum(-1) + twice.sum(-1)
    beyond = (indices != -1).sum(-1) - wanted
    exactly = demand.recall is None and demand.mass is None
    broken += (beyond.abs() if exactly else beyond.clamp_min(0)) + scores.isnan().sum(-1)

    slack = _slack(scores, demand)[:, None]
    best = scores.topk(min(demand.k, length), dim=-1).values
    poor = torch.zeros_like(slack[:, 0], dtype=torch.float64)
    if exactly:
        ours = torch.full_like(best, NEVER)
        some = min(best.shape[-1], chosen.shape[-1])
        ours[:, :some] = chosen.sort(-1, descending=True).values[:, :some]
        due = torch.arange(best.shape[-1], device=best.device) < wanted[:, None]
        gap = (best - ours).masked_fill(~due | (ours >= best - slack), 0).nan_to_num().amax(-1)
        poor = (gap / (gap + scores.nan_to_num(0, 0, 0).abs().amax(-1) + 1e-30)).double()
    if demand.recall is not None:
        last = best.gather(-1, (wanted - 1).clamp_min(0)[:, None])
        recall = (chosen >= last - slack).sum(-1).minimum(wanted).double() / wanted
        poor = poor.maximum((1 - recall).masked_fill(recall >= demand.recall, 0))
    if demand.mass is not None:
        mass = weights(scores).gather(-1, indices.clamp(0, length - 1)).masked_fill(~inside, 0)
        mass = mass.double().sum(-1)
        poor = poor.maximum((1 - mass).masked_fill(mass >= demand.mass - TOLERANCE, 0))
    return broken + poor.masked_fill(wanted == 0, 0).nan_to_num(0.5).clamp(0, 0.999)


def _slack(scores: Tensor, demand: _Demand) -> Tensor:
    """How far apart two scores of a row may be and yet be one."""
    return demand.tolerance * scores.abs().masked_fill(~scores.isfinite(), 0).amax(-1)


def _facts(
    indices: Tensor, scores: Tensor, weights: Callable[[Tensor], Tensor], demand: _Demand
) -> list[str]:
    """What there is to know of one row: indices [w], scores [T]."""
    known = scores.masked_fill(scores.isnan(), NEVER)
    visible = int((known > NEVER).sum())
    wanted = min(demand.k, visible)
    listed = indices[indices != -1]
    inside = listed[(listed >= 0) & (listed < len(scores))]
    different, times = inside.unique(return_counts=True)
    own = different[known[different] > NEVER]
    facts = {
        "due": f"{wanted} different slots of {visible} visible (k {demand.k}, T {len(scores)})",
        "chosen": f"{len(listed)} slots, {len(own)} of them different and visible",
        "short": f"{len(own)} of {wanted} due slots chosen" if len(own) < wanted else "none",
        "out of range": _few(listed[(listed < 0) | (listed >= len(scores))]),
        "not visible": _few(different[scores[different] == NEVER]),
        "chosen twice": _few(different[times > 1]),
        "NaN scores": _few(scores.isnan().nonzero()[:, 0]),
    }
    if wanted == 0:
        return [f"{name}: {fact}" for name, fact in facts.items()]
    best = known.sort(descending=True)
    last = best.values[wanted - 1]
    slack = _slack(known, demand)
    above, below = known > last + slack, known < last - slack
    sure = known > NEVER
    tied = int((~above & ~below).sum())
    facts["boundary"] = f"all {visible} visible slots are due: no key follows the k-th"
    if wanted < visible:
        after = best.values[wanted]
        sure = known > after + slack
        gap = 0.0 if after == last else float(last - after)
        facts["boundary"] = f"k-th score {last:.7g}, next {after:.7g}, gap {gap:.3g}"
    facts["ties"] = f"{tied} at the k-th score, {wanted - int(above.sum())} of them due"
    facts["missed"] = _few(sure.index_fill(0, own, False).nonzero()[:, 0], known)
    facts["too low"] = _few(own[below[own]], known)
    heavy = weights(known[None])[0]
    top = best.indices[:wanted]
    hits = min(wanted, int((~below[own]).sum()))
    facts["recall"] = f"{hits / wanted:.4g}"
    facts["mass"] = f"{heavy[own].sum():.4g}, the exact Top-k's {heavy[top].sum():.4g}"
    return [f"{name}: {fact}" for name, fact in facts.items()]


def _few(slots: Tensor, scores: Tensor | None = None) -> str:
    """The first of some slots, with their scores."""
    if len(slots) == 0:
        return "none"
    shown = [
        f"{slot}" if scores is None else f"{slot} ({float(scores[slot]):.7g})"
        for slot in slots[:8].tolist()
    ]
    more = f" and {len(slots) - 8} more" if len(slots) > 8 else ""
    return f"{len(slots)}: {', '.join(shown)}{more}"
