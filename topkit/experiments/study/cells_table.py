"""A report's table of every cell: its accuracy, what it differs by, its fidelity."""

# pyright: strict
from __future__ import annotations

from collections.abc import Sequence
from html import escape

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


def cells_table(findings: Findings, budgets: Sequence[Budget] | None = None) -> str:
    """The table as HTML; rows are cells, in their kinds: all, or full attention and those of budgets."""
    curve, kind = findings.curve, ""
    lines: list[str] = []
    columns = [c.replace(f"{MARGIN:g}", f"{findings.margin:g}") for c in _COLUMNS]
    columns[3:3] = _apart(findings)
    columns += [name for name, texts in _sometimes(findings).items() if any(texts)]
    head = "".join(f"<th>{escape(column)}</th>" for column in columns)
    for place, cell in enumerate(curve.cells):
        if budgets is not None and cell.budget is not None and cell.budget not in budgets:
            continue
        if kind_of(cell) != kind:
            kind = kind_of(cell)
            lines.append(f'<tr class="kind"><td colspan="{len(columns)}">{_KINDS[kind]}</td></tr>')
        cells = "".join(f"<td>{escape(text)}</td>" for text in _row(findings, place))
        lines.append(f"<tr>{cells}</tr>")
    body = "\n".join(lines)
    return (
        f"<h3>{'Every cell' if budgets is None else 'Cells at these budgets'}</h3><p class='note'>Differences are paired: the same questions, the same "
        f"haystacks. At {findings.margin:g}: as good where the interval of the difference to full "
        f"attention lies above -{findings.margin:g}, worse where it lies below; undecided at the floor, where "
        f"full attention itself scores no more than {findings.margin:g}.</p>"
        f'<div class="table"><table><thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table></div>'
    )


_KINDS = {
    DENSE: "full attention",
    "oracle": "oracles",
    "real": "real indexers",
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
    sometimes = (texts[place] for texts in _sometimes(findings).values() if any(texts))
    return [
        name_of(cell),
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
        *sometimes,
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
