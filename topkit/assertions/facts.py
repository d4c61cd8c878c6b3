# pyright: strict
"""The facts of a row that fails, for the error."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from topkit.assertions.demand import Demand
from topkit.assertions.exact import NEVER, Rows
from topkit.assertions.listed import Listed
from topkit.fidelity.ties import floors


def facts(
    listed: Listed, row: Rows, weights: Callable[[Tensor], Tensor], demand: Demand
) -> list[str]:
    """The facts by name, a line each. Shapes: listed of one row; of the row, scores and doubt [T]."""
    known = row.scores.masked_fill(row.scores.isnan(), NEVER)
    length, visible = len(known), int((known > NEVER).sum())
    wanted = min(demand.k, visible)
    slots, said = listed.slots[0], listed.said[0]
    inside = (slots >= 0) & (slots < length)
    different, repeated = _distinct(slots[inside])
    own = different[known[different] > NEVER]
    lines = {
        "due": f"{wanted} different slots of {visible} visible (k {demand.k}, T {length})",
        "chosen": f"{int((slots != -1).sum())} slots, {len(own)} of them different and visible",
        "short": f"{len(own)} of {wanted} due slots chosen" if len(own) < wanted else "none",
        "out of range": _few(said[~inside & (slots != -1)]),
        "not visible": _few(different[row.scores[different] == NEVER]),
        "chosen twice": _few(repeated),
        "NaN scores": _few(row.scores.isnan().nonzero()[:, 0]),
    }
    if listed.page_size is not None:
        lines["slots"] = f"by their place in the row, through pages of {listed.page_size}"
    if wanted > 0:
        lines |= _choice(own, Rows(known, row.doubt), wanted, weights)
    return [f"{name}: {fact}" for name, fact in lines.items()]


def _choice(
    own: Tensor, row: Rows, wanted: int, weights: Callable[[Tensor], Tensor]
) -> dict[str, str]:
    """How good the different visible slots that were chosen are."""
    known, doubt = row.scores, row.doubt
    best = known.sort(descending=True)
    last, off = best.values[wanted - 1], doubt[best.indices[wanted - 1]]
    above, below = known - doubt > last + off, known + doubt < floors(known, doubt)[wanted - 1]
    sure = known > NEVER
    tied = int((~above & ~below).sum())
    boundary = f"all {int(sure.sum())} visible slots are due: no key follows the k-th"
    if wanted < int(sure.sum()):
        after = best.values[wanted]
        sure = known - doubt > after + doubt[best.indices[wanted]]
        gap = 0.0 if after == last else float(last - after)
        boundary = f"k-th score {last:.7g}, next {after:.7g}, gap {gap:.3g}"
    heavy, top = weights(known[None])[0], best.indices[:wanted]
    hits = min(wanted, int((~below[own]).sum()))
    return {
        "boundary": boundary,
        "ties": f"{tied} at the k-th score, {wanted - int(above.sum())} of them due",
        "missed": _few(sure.index_fill(0, own, False).nonzero()[:, 0], known),
        "too low": _few(own[below[own]], known),
        "swapped": _swapped(own, row),
        "recall": f"{hits / wanted:.4g}",
        "mass": f"{heavy[own].sum():.4g}, the exact Top-k's {heavy[top].sum():.4g}",
    }


def _swapped(own: Tensor, row: Rows) -> str:
    """The best slot left out and the worst one chosen, where they change places."""
    picked = torch.zeros_like(row.scores, dtype=torch.bool).index_fill(0, own, True)
    left = (row.scores - row.doubt).masked_fill(picked, NEVER)
    kept = (row.scores + row.doubt).masked_fill(~picked, float("inf"))
    a, b = int(left.argmax()), int(kept.argmin())
    if not left[a] > kept[b]:
        return "none"
    return f"{a} ({float(row.scores[a]):.7g}) left out for {b} ({float(row.scores[b]):.7g})"


def _distinct(slots: Tensor) -> tuple[Tensor, Tensor]:
    """The different slots, ascending, and those that are there more than once."""
    ordered = slots.sort().values
    first = torch.ones_like(ordered, dtype=torch.bool)
    first[1:] = ordered[1:] != ordered[:-1]
    second = ~first
    second[1:] &= first[:-1]
    return ordered[first], ordered[second]


def _few(slots: Tensor, scores: Tensor | None = None) -> str:
    """The first of some slots, with their scores."""
    if len(slots) == 0:
        return "none"
    shown = [
        f"{slot}" if scores is None else f"{slot} ({float(scores[slot]):.7g})"
        for slot in map(int, slots[:8])
    ]
    more = f" and {len(slots) - 8} more" if len(slots) > 8 else ""
    return f"{len(slots)}: {', '.join(shown)}{more}"
