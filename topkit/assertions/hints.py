# pyright: strict
"""What may be behind a row that fails, for the error."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from topkit.assertions.demand import Demand
from topkit.assertions.exact import NEVER, Rows
from topkit.assertions.listed import Listed

# Half of a bfloat16's last place is 0.004; products and sums that are rounded too may be off by twice that.
_MOST = 0.008


def hints(
    listed: Listed, row: Rows, weights: Callable[[Tensor], Tensor], demand: Demand
) -> Iterator[str]:
    """One line each. Shapes: listed of one row; of the row, scores and doubt [T]."""
    slots, said = listed.slots[0], listed.said[0]
    known = row.scores.masked_fill(row.scores.isnan(), NEVER)
    length = len(known)
    inside = (slots >= 0) & (slots < length)
    sees = inside & (known[slots.clamp(0, length - 1)] > NEVER)
    visible = (known > NEVER).nonzero()[:, 0]
    yield from _fill(slots, said, sees, len(visible))
    yield from _elsewhere(listed, inside)
    if len(visible) and bool((slots == visible[-1] + 1).any()):
        yield (
            f"slot {int(visible[-1]) + 1} comes right after the last visible one: stop is one past the last "
            "slot that a query sees"
        )
    if len(visible):
        own = torch.zeros_like(known, dtype=torch.bool).index_fill(0, slots[sees], True)
        yield from _tolerance(own, Rows(known, row.doubt), demand)
        yield from _mass(known, weights, min(demand.k, len(visible)), demand)


def _fill(slots: Tensor, said: Tensor, sees: Tensor, visible: int) -> Iterator[str]:
    """Places for which there is no slot want -1."""
    spare = len(slots) - visible
    first = torch.zeros_like(sees)
    order = slots.argsort(stable=True)
    first[order[1:]] = slots[order[1:]] == slots[order[:-1]]
    wrong = said[(slots != -1) & (~sees | first)]
    if spare > 0 and len(wrong):
        value = int(wrong.mode().values)
        times = int((wrong == value).sum())
        now = f" (now {value}, {times} times)" if times > 1 else ""
        yield f"{len(slots)} places and {visible} visible slots: fill the {spare} others with -1{now}"


def _elsewhere(listed: Listed, inside: Tensor) -> Iterator[str]:
    """Ids of another numbering."""
    strange = int((~inside & (listed.slots[0] != -1)).sum())
    if listed.page_size is not None:
        if strange:
            yield (
                "out of range are ids of pages that this row's block table lacks: physical ids are "
                f"page * {listed.page_size} + place in the page"
            )
    elif 2 * strange > len(listed.slots[0]):
        yield (
            "most ids are out of range: physical ids of a paged cache go with block_table= and page_size=, and "
            "those of a flat batch want the first of their sequence subtracted"
        )


def _tolerance(own: Tensor, row: Rows, demand: Demand) -> Iterator[str]:
    """The least tolerance by which the choice would be exact, if rounding could be behind it."""
    if demand.mass is not None or demand.mass_ratio is not None or not bool(own.any()):
        return
    scores = row.scores.double()
    size = row.doubt.double() / demand.tolerance if demand.tolerance else scores.abs()
    size = size.nan_to_num(0, 0, 0)
    left = ~own & (scores > NEVER)

    def apart(tolerance: float) -> bool:
        best = (scores - tolerance * size)[left].amax()
        return bool(best > (scores + tolerance * size)[own].amin())

    if not bool(left.any()) or not apart(demand.tolerance) or apart(_MOST):
        return
    low, high = demand.tolerance, _MOST
    for _ in range(24):
        middle = (low + high) / 2
        low, high = (middle, high) if apart(middle) else (low, middle)
    yield (
        f"tolerance={_above(high)} admits this choice: set it where the kernel's scores are rounded "
        "(bfloat16 0.004, float16 0.0005 of each score)"
    )


def _above(x: float) -> str:
    """A number rounded up to two digits."""
    unit = 10.0 ** (math.floor(math.log10(x)) - 1)
    return f"{math.ceil(x / unit) * unit:.2g}"


def _mass(
    known: Tensor, weights: Callable[[Tensor], Tensor], wanted: int, demand: Demand
) -> Iterator[str]:
    most = float(weights(known[None])[0].double().topk(wanted).values.sum())
    if demand.mass is not None and most < demand.mass:
        yield (
            f"the exact Top-k itself has a mass of {most:.4g}: mass_ratio= asks for a share of that"
        )
