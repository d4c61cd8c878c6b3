"""A report's table of every cell: its accuracy, what it differs by, its fidelity."""

# pyright: strict
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from topkit.experiments.runs.cells import DENSE
from topkit.experiments.study.findings import Findings
from topkit.experiments.study.intervals import MARGIN
from topkit.experiments.study.kinds import kind_of, name_of
from topkit.experiments.study.sentences import said
from topkit.experiments.study.trivial import note
from topkit.indexers.budget import Budget

_COLUMNS = (
    "cell",
    "kind",
    "k",
    "accuracy",
    "minus full attention",
    f"at {MARGIN:g}",
    "minus exact Top-k",
    "NLL",
    "NLL minus full attention",
    "KL",
    "recall",
    "mass",
    "KiB read",
    "B a token",
)


@dataclass(frozen=True)
class CellsTable:
    """Heads of columns, rows of texts, and what the page says above them."""

    title: str
    note: str
    columns: list[str]
    rows: list[list[str]]


def cells_table(findings: Findings, budgets: Sequence[Budget] | None = None) -> CellsTable:
    """Cells in the order of their kinds: all, or full attention and those of budgets."""
    curve = findings.curve
    sometimes = {name: texts for name, texts in _sometimes(findings).items() if any(texts)}
    columns = [c.replace(f"{MARGIN:g}", f"{findings.margin:g}") for c in _COLUMNS]
    columns[4:4] = _apart(findings)
    columns += sometimes
    kept = [
        place
        for place, cell in enumerate(curve.cells)
        if budgets is None or cell.budget is None or cell.budget in budgets
    ]
    return CellsTable(
        "Every cell" if budgets is None else "Cells at these budgets",
        "Differences are paired: the same questions, the same haystacks. "
        f"At {findings.margin:g}: as good where the interval of the difference to full attention lies above "
        f"-{findings.margin:g}, worse where it lies below; undecided at the floor, where full attention itself "
        f"scores no more than {findings.margin:g}.",
        columns,
        [
            [*_row(findings, place), *(texts[place] for texts in sometimes.values())]
            for place in kept
        ],
    )


_KINDS = {
    DENSE: "full attention",
    "oracle": "oracle",
    "real": "real",
    "control": "control",
}


def _tokens(findings: Findings) -> float:
    """What a prompt holds on average, or its label where nobody counted."""
    curve = findings.curve
    counted = curve.tokens[np.isfinite(curve.tokens)]
    return float(counted.mean()) if counted.size else float(curve.length)


def _apart(findings: Findings) -> list[str]:
    """The columns of trained and of held-out words, where there are both."""
    return list(findings.apart) if len(findings.apart) > 1 else []


def _row(findings: Findings, place: int) -> list[str]:
    curve, to_exact = findings.curve, findings.to_exact(place)
    cell, numbers = curve.cells[place], {m: curve.mean(m)[place] for m in curve.fidelity}
    compared = findings.to_dense is not None and kind_of(cell) != DENSE
    return [
        name_of(cell),
        _KINDS[kind_of(cell)],
        str(cell.budget or ""),
        said(findings.accuracy[place]),
        *(said(findings.apart[name][place]) for name in _apart(findings)),
        said(findings.to_dense[place], signed=True) if compared else "",  # type: ignore[index]
        findings.verdict(place),
        said(to_exact, signed=True) if to_exact is not None and kind_of(cell) != DENSE else "",
        *findings.nats(place),
        _number(numbers["recall"]),
        _number(numbers["mass"]),
        _number(numbers["bytes_read"] / 1024, 1),
        _number(numbers["bytes_read"] / _tokens(findings), 1),
    ]


def _sometimes(findings: Findings) -> dict[str, list[str]]:
    """Columns that stand where a cell has something to say there: of the lists that heads share, and a note."""
    curve = findings.curve
    recall, mass = (map(_number, curve.mean(f"unit_{name}")) for name in ("recall", "mass"))
    return {
        "recall of the list": list(recall),
        "mass of the list": list(mass),
        "note": [note(curve, place) for place in range(len(curve.cells))],
    }


def _number(value: float, digits: int = 3) -> str:
    return f"{value:.{digits}f}" if np.isfinite(value) else ""
