"""The figures of a page: each kind compiled once, each table held once, drawn by the page when it is seen."""

# pyright: strict
from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import altair as alt
import numpy as np
from markupsafe import Markup

from topkit.experiments.study.cell_rows import Row
from topkit.experiments.study.drawing import Spec, bare, compiled, filled
from topkit.experiments.study.pictures import Pictures
from topkit.experiments.study.stats import Array

# Rows, or numbers in 0..1 by layer and head.
Data = Mapping[str, Sequence[Row] | Array]


@dataclass(frozen=True)
class Shown:
    """A figure where it stands in the page; alt: what it shows, in words made from its numbers."""

    name: str
    caption: str
    alt: str


@dataclass
class Sheet:
    """The figures of one page, and the pictures of them in a folder, where any are written."""

    folder: Path
    pictures: Pictures | None
    kinds: dict[str, Spec] = field(default_factory=dict[str, Spec])
    tables: dict[str, Any] = field(default_factory=dict[str, Any])
    figures: dict[str, Any] = field(default_factory=dict[str, Any])
    _files: dict[str, Spec] = field(default_factory=dict[str, Spec])
    _ids: dict[int, str] = field(default_factory=dict[int, str])
    _held: list[Any] = field(default_factory=list[Any])

    def show(
        self,
        shown: Shown,
        kind: str,
        make: Callable[[], alt.TopLevelMixin],
        data: Data,
        budget: str = "",
    ) -> Shown:
        """Put a figure of a kind into the page; `make` draws the kind, once."""
        if kind not in self.kinds:
            self.kinds[kind] = bare(compiled(make()))
        names = {name: self._table(rows) for name, rows in data.items()}
        self.figures[shown.name] = {"kind": kind, "data": names, "budget": budget}
        return shown

    def save(
        self,
        name: str,
        kind: str,
        make: Callable[[], alt.TopLevelMixin],
        data: Mapping[str, Sequence[Row]],
        budget: str = "",
    ) -> None:
        """Have a figure written as FOLDER/NAME.png and .svg."""
        if self.pictures is None:
            return
        if kind not in self._files:
            self._files[kind] = compiled(make())
        self.folder.mkdir(parents=True, exist_ok=True)
        self.pictures.add(filled(self._files[kind], data, budget), self.folder / name)

    def _table(self, rows: Sequence[Row] | Array) -> str:
        """The name of a table in the page; of one that is there already, its own."""
        if id(rows) not in self._ids:
            self._ids[id(rows)] = f"t{len(self._ids)}"
            self._held.append(rows)  # so that no other takes its id
            self.tables[self._ids[id(rows)]] = _packed(rows)
        return self._ids[id(rows)]

    def json(self) -> Markup:
        """All of it for the page's script: JSON that closes no tag and begins none."""
        whole = {"kinds": self.kinds, "tables": self.tables, "figures": self.figures}
        return json_for_page(whole)


def _packed(rows: Sequence[Row] | Array) -> Any:
    """Rows as columns; numbers by layer and head in hundredths."""
    if isinstance(rows, np.ndarray):
        return {"grid": [[None if np.isnan(x) else round(100 * x) for x in row] for row in rows.tolist()]}  # fmt: skip
    columns = list(dict.fromkeys(name for row in rows for name in row))
    return {"columns": columns, "rows": [[row.get(name) for name in columns] for row in rows]}


def json_for_page(value: Any) -> Markup:
    """JSON that may stand in a script element."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    for sign in "<>&":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return Markup(text)
