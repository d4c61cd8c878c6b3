"""What figures and tables show of a curve: a row a cell, plain numbers by plain names."""

# pyright: strict
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from topkit.experiments.runs.cells import Cell
from topkit.experiments.study.intervals import Intervals
from topkit.experiments.study.kinds import EXACT, family_of, kind_of, name_of
from topkit.experiments.study.manners import manner_words
from topkit.experiments.study.ranks import front
from topkit.experiments.study.sentences import judged
from topkit.experiments.study.stats import Array, Interval
from topkit.indexers.degraded import degraded

Row = dict[str, Any]
EXACT_NAME, DENSE_NAME = "exact Top-k", "full attention"
# Of fidelity what accuracy is drawn against: the last where a run's rows have it.
METRICS = ("recall", "mass", "ws")


def cell_rows(of: Intervals) -> list[Row]:
    """A row a cell, in the curve's order; None where a number is not there.

    share: bytes that choosing reads over those that exact Top-k reads; verdict: against exact Top-k at the
    cell's own budget; front: on the Pareto front of accuracy and bytes at its budget.
    """
    curve, share = of.curve, shares(of)
    read, on_front = mean_of(of, "bytes_read"), _fronts(of, share)
    metrics = {name: mean_of(of, name) for name in METRICS}
    losses, more, kept = of.losses if curve.losses else {}, _nll_gap(of), curve.kept
    rows: list[Row] = []
    for place, cell in enumerate(curve.cells):
        row: Row = {
            "name": label_of(cell),
            "label": shortened(label_of(cell)),
            "kind": group_of(cell),
            "family": family(cell),
            "budget": str(cell.budget or ""),
            "verdict": verdict_of(of, place),
            "front": place in on_front,
            "manner": manner_words(cell.indexer) if isinstance(cell.indexer, degraded) else "",
            "kept": kept[place],
            "share": share[place],
            "kib": read[place] / 1024,
            **_ends("", of.accuracy[place], "accuracy"),
            **_ends("gap_", of.to_exact(place), "gap"),
            **_ends("nll_", None if more is None else more[place], "nll_gap"),
            **{name: values[place] for name, values in metrics.items()},
            **{name: losses[name].value[place] for name in ("nll", "kl") if name in losses},
        }
        rows.append({name: _plain(value) for name, value in row.items()})
    return _with_ends(rows)


def _with_ends(rows: list[Row]) -> list[Row]:
    """`last`: whether a row has its recipe's greatest k; `several`: whether the recipe has more than one."""
    kept: dict[str, set[float]] = {}
    for row in rows:
        if row["kept"] is not None:
            kept.setdefault(row["name"], set()).add(row["kept"])
    for row in rows:
        its = kept.get(row["name"], set())
        row["several"] = len(its) > 1
        row["last"] = bool(its) and row["kept"] == max(its) and row["kind"] != "design"
    return rows


def label_of(cell: Cell) -> str:
    """A cell as figures name it."""
    if cell.indexer is None:
        return DENSE_NAME
    return EXACT_NAME if cell.indexer == EXACT else name_of(cell)


def shortened(name: str, most: int = 34) -> str:
    """A name as it stands beside its point."""
    return name if len(name) <= most else f"{name[: most - 1]}…"


def group_of(cell: Cell) -> str:
    """dense, exact, design (oracles that lose keys), or else the cell's kind."""
    if cell.indexer == EXACT:
        return "exact"
    return "design" if isinstance(cell.indexer, degraded) else kind_of(cell)


def family(cell: Cell) -> str:
    """Whose mark a cell has; a combinator stands with what it combines."""
    return family_of(cell) if group_of(cell) == "real" else group_of(cell)


def mean_of(of: Intervals, metric: str) -> Array:
    """A fidelity metric [C]; NaN where the rows have none."""
    curve = of.curve
    return curve.mean(metric) if metric in curve.fidelity else np.full(len(curve.cells), np.nan)


def shares(of: Intervals) -> Array:
    """What choosing reads, over what exact Top-k reads at the same budget [C]; NaN without it."""
    read = mean_of(of, "bytes_read")
    exact = [of.exact.get(cell.budget) for cell in of.curve.cells]
    base = np.array([np.nan if place is None else read[place] for place in exact])
    return np.divide(read, base, out=np.full(len(read), np.nan), where=base > 0)


def verdict_of(of: Intervals, place: int) -> str:
    """Against exact Top-k at the cell's own budget; blank where that was not run, and for itself."""
    exact, gap = of.exact.get(of.curve.cells[place].budget), of.to_exact(place)
    if gap is None or exact is None:
        return ""
    return judged(gap, of.margin, float(of.accuracy.value[exact]))


def front_of(rows: Sequence[Row], budget: str) -> list[Row]:
    """The corners of the front at a budget, the cheapest first."""
    on = [row for row in rows if row["front"] and row["budget"] == budget]
    return sorted(on, key=lambda row: row["share"])


def _nll_gap(of: Intervals) -> Interval | None:
    return of.nll_to_dense if "nll" in of.curve.losses else None


def _ends(prefix: str, interval: Interval | None, name: str) -> Row:
    ends = (None, None, None) if interval is None else tuple(interval)
    return dict(zip((name, f"{prefix}low", f"{prefix}high"), ends, strict=True))


def _fronts(of: Intervals, share: Array) -> set[int]:
    """The places on the Pareto front of each budget, of what could be used: real indexers and exact Top-k."""
    found = set[int]()
    for budget in of.curve.budgets:
        places = of.curve.where("real", budget=budget)
        places += [of.exact[budget]] if budget in of.exact else []
        found |= {places[n] for n in front(share[places], of.accuracy.value[places])}
    return found


def _plain(value: Any) -> Any:
    """Numbers to four digits, None for what is none; words and truths as they are."""
    if isinstance(value, str | bool) or value is None:
        return value
    return float(f"{float(value):.4g}") if np.isfinite(value) else None
