"""A comparison on the screen: the numbers in a table, what changed in a line, the verdict in another."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import typer

from topkit.cli.screen import show

# Of recall the 1st; of what is lost, where more is worse, the 99th.
PERCENTILE = "1st percentile (lost: 99th)"

# A list that holds no more of the mass than chance and this part of the rest says little of weights.
FLAT = 0.05

Summary = Mapping[str, Any]


def show_comparison(summary: Summary) -> None:
    """Print the summary of a Comparison; the last line is the verdict."""
    show([_recall(summary), *([_mass(summary)] if summary["mass"] else [])], as_json=False)
    typer.echo(_changed(summary))
    if summary["verdict"] == "safe":
        typer.echo(summary["sentence"])


def rows_of(summary: Summary, digits: int | None = None) -> list[dict[str, Any]]:
    """A row for all, for each layer and for each sequence; numbers, or texts of so many digits."""
    every = {
        "of": "all",
        "place": None,
        "rows": summary["rows"],
        **{f"recall{end}": summary["recall"][name] for end, name in _ENDS.items()},
        **{
            f"mass_lost{end}": (summary["mass"] or {}).get(name if end else "lost")
            for end, name in _ENDS.items()
        },
        "rows_changed": summary["rows_changed"],
    }
    parts = [(by, one) for by in ("layer", "sample") for one in summary[f"by_{_BY[by]}"]]
    rows = [
        every,
        *({**dict.fromkeys(every), **one, "of": by, "place": one[by]} for by, one in parts),
    ]
    rows = [{name: row[name] for name in every} for row in rows]
    if digits is None:
        return rows
    return [
        {n: f"{x:.{digits}f}" if isinstance(x, float) else x for n, x in row.items()}
        for row in rows
    ]


_ENDS = {"": "mean", "_low": "low", "_high": "high"}
_BY = {"layer": "layer", "sample": "sequence"}


def _recall(summary: Summary) -> dict[str, str]:
    recall, rerun = summary["recall"], summary["rerun"]
    ends = (recall["low"], recall["high"])
    tail = (PERCENTILE, "p1")
    return _row("recall", recall, recall["mean"], ends, tail, rerun and rerun["recall"])


def _mass(summary: Summary) -> dict[str, str]:
    mass, rerun = summary["mass"], summary["rerun"]
    ends, tail = (mass["low"], mass["high"]), (PERCENTILE, "p99")
    name = f"mass lost ({mass['of']})"
    return _row(name, mass, mass["lost"], ends, tail, rerun and rerun["mass_lost"])


def _row(
    name: str,
    numbers: Summary,
    mean: float,
    ends: tuple[float | None, float | None],
    tail: tuple[str, str],
    rerun: float | None,
) -> dict[str, str]:
    where = " ".join(f"{axis} {place}" for axis, place in numbers["worst_row"].items())
    margin = numbers["margin"]
    row = {
        "": name,
        "mean": f"{mean:.5f}",
        "interval": "-" if ends[0] is None else f"{ends[0]:.5f} to {ends[1]:.5f}",
        tail[0]: f"{numbers[tail[1]]:.4f}",
        "worst row": f"{numbers['worst']:.4f} at {where}",
        "margin": "-" if margin is None else f"{margin:g}",
    }
    return row if rerun is None else {**row, "baseline's rerun": f"{rerun:.5f}"}


def _changed(summary: Summary) -> str:
    rows, sequences, copies = (summary[name] for name in ("rows", "sequences", "copies"))
    line = f"{rows:,} rows of {sequences} sequence{'s' * (sequences != 1)}"
    keys = summary["keys"]
    if keys["baseline"] != keys["candidate"]:
        line += f", of {keys['baseline']:,.1f} keys by the baseline and {keys['candidate']:,.1f} by the candidate"
    if copies:
        line += f" ({copies} more {'are copies' if copies > 1 else 'is a copy'}, counted once)"
    line += f": {summary['rows_changed']:.1%} changed"
    if summary["ties_at_boundary"] is not None:
        line += f", {summary['changed_by_ties']:.1%} by ties alone; ties at the boundary in {summary['ties_at_boundary']:.1%}"
    else:
        line += "; the baseline has no scores, so that ties are not known"
    if summary["rerun"]:
        line += f"; the baseline's rerun changed {summary['rerun']['rows_changed']:.1%}"
    if len(summary["by_layer"]) > 1:
        worst = min(summary["by_layer"], key=lambda layer: layer["recall"])
        line += f"; the worst layer is {worst['layer']}, of recall {worst['recall']:.4f}"
    mass = summary["mass"]
    if (
        mass
        and mass["of"] == "index"
        and mass["baseline"] - mass["chance"] < FLAT * (1 - mass["chance"])
    ):
        line += (
            f"; the softmax of the scores is nearly flat, {mass['baseline']:.3f} on the baseline's lists: lightning puts "
            "the factor (heads x width) ** -0.5 itself, and index weights that have it too make mass mean little"
        )
    if summary["left_out"]:
        line += f"; {summary['left_out']:,} rows left out: k covers all that they see"
    return line
