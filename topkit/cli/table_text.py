"""Rows as text for other programs: CSV, and a table in LaTeX."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Rows = Sequence[Mapping[str, Any]]

# What stands above a table: the packages that it needs, all of every LaTeX.
PACKAGES = "% \\usepackage[T1]{fontenc} \\usepackage{textcomp} \\usepackage{booktabs}"
_LATEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "_": r"\_",
    "%": r"\%",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "'": r"\textquotesingle{}",
    "`": r"\textasciigrave{}",
}
_MINUS = re.compile(r"(?<![\w.)])-(?=\d)")  # before a number; between words it is a hyphen


def csv_text(rows: Rows) -> str:
    """A line a row below the names of the columns; what is no number is blank."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(rows[0] if rows else [])
    writer.writerows([["" if _none(x) else x for x in row.values()] for row in rows])
    return text.getvalue()


def latex_text(rows: Rows, comment: str = "") -> str:
    """A table by booktabs of what rows say; words stand to the left, numbers to the right.

    comment: a line above it, such as where the numbers come from.
    """
    columns = list(rows[0]) if rows else []
    aligned = "".join("l" if _worded(row[name] for row in rows) else "r" for name in columns)
    lines = [
        PACKAGES,
        *([f"% {' '.join(comment.split())}"] if comment else []),
        f"\\begin{{tabular}}{{{aligned or 'l'}}}",
        "\\toprule",
        _line(columns),
        "\\midrule",
        *(_line(row.values()) for row in rows),
        "\\bottomrule",
        "\\end{tabular}",
    ]
    return "\n".join(lines) + "\n"


def escaped(text: str) -> str:
    """A text that LaTeX sets as it is, in one line; letters beyond Latin's by their number in Unicode."""
    signs = (sign for sign in " ".join(text.split()) if sign.isprintable())
    return "".join(_LATEX.get(x, x if ord(x) < 256 else f"U+{ord(x):04X}") for x in signs)


def _line(values: Iterable[Any]) -> str:
    texts = ("" if _none(value) else escaped(str(value)) for value in values)
    # An empty group: a row that begins with a bracket would be an option of the line before.
    return "{}" + " & ".join(_MINUS.sub("$-$", text) for text in texts) + r" \\"


def _worded(values: Iterable[Any]) -> bool:
    """Whether some text is neither a number nor one with its interval."""
    texts = [value for value in values if isinstance(value, str) and value]
    return any(not re.match(r"[+-]?[\d.,]+%?(\s|$)", text) for text in texts)


def _none(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))
