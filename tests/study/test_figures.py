"""Figures: names cover neither one another nor the edge, and what a picture shows is what the rows say."""

from __future__ import annotations

from itertools import combinations, pairwise
from typing import Any

import pyarrow as pa
import pytest
import vl_convert as vlc

from known_study import REAL, cell, tables
from topkit.experiments.study import figures
from topkit.experiments.study.accuracy_by_k import by_budget
from topkit.experiments.study.cell_rows import cell_rows, front_of
from topkit.experiments.study.curves import curves
from topkit.experiments.study.drawing import MARKS, compiled, families, filled, mark_of
from topkit.experiments.study.findings import Findings
from topkit.experiments.study.head_maps import all_maps, head_maps, one_map, weakest
from topkit.experiments.study.kinds import kind_of
from topkit.experiments.study.section import lines_of

# Of a letter of the font at its size, at least.
LETTER, HEIGHT = 4.4, 9.0


def marks(node: Any, kind: str, name: str) -> list[dict[str, Any]]:
    """The marks of a scene graph whose name begins so."""
    if isinstance(node, list):
        return [item for one in node for item in marks(one, kind, name)]
    if not isinstance(node, dict):
        return []
    found = (
        node["items"]
        if node.get("marktype") == kind and str(node.get("name")).startswith(name)
        else []
    )
    return found + marks([value for key, value in node.items() if key != "parent"], kind, name)


def box(text: dict[str, Any]) -> tuple[float, float, float, float]:
    width = LETTER * len(text["text"])
    x = text.get("x", 0.0) - {"left": 0, "center": width / 2, "right": width}[text["align"]]
    y = text.get("y", 0.0) - {"top": 0, "middle": HEIGHT / 2, "bottom": HEIGHT}[text["baseline"]]
    return x, y, x + width, y + HEIGHT


def overlap(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


DRAWN = {
    "cost": figures.by_cost,
    "recall": lambda names: figures.by_fidelity(names, "recall"),
    "bytes": lambda names: figures.by_cost(names, "mass"),
    "loss": lambda names: figures.by_cost(names, "nll_gap"),
    "k": by_budget,
}


@pytest.mark.parametrize("figure", DRAWN)
@pytest.mark.parametrize("crowded", [False, True])
def test_no_name_covers_another_or_leaves_the_figure(figure: str, crowded: bool) -> None:
    table, heads = tables()
    rows = table.to_pylist()
    for row in rows:
        if crowded and kind_of(cell(row["indexer"])) == "real":
            row |= {"recall": 0.9, "mass": 0.95, "exact_match": 0.9, "bytes_read": 4096.0}
    findings = Findings(curves(pa.Table.from_pylist(rows), heads)[0])
    shown = cell_rows(findings)
    spec = compiled(DRAWN[figure](families(shown)))
    scene = vlc.vega_to_scenegraph(
        filled(spec, {"cells": shown, "lines": lines_of(findings)}, "32")
    )
    names = [text for text in marks(scene, "text", "names_") if text["opacity"]]
    dots = marks(scene, "symbol", "dots")
    assert len(dots) >= len(REAL) and len(names) >= (2 if crowded else 7)
    boxes = [box(text) for text in names]
    for one, other in combinations(boxes, 2):
        assert not overlap(one, other)
    for x0, y0, x1, y1 in boxes:
        assert x0 >= -1 and y0 >= -HEIGHT and x1 <= 521 and y1 <= 330 + HEIGHT


def test_a_family_has_a_mark_of_its_own() -> None:
    assert len({mark for name, mark in MARKS.items() if name not in ("exact", "combinator")}) == len(MARKS) - 2  # fmt: skip
    shapes = [shape for name, (shape, _) in MARKS.items() if name not in ("exact", "combinator")]
    assert len(set(shapes)) == len(shapes)  # in grey too
    assert mark_of("whatever") == mark_of("of nobody")


def test_rows_say_what_findings_say() -> None:
    findings = Findings(curves(*tables())[0])
    rows = {(row["name"], row["budget"]): row for row in cell_rows(findings)}
    assert len(rows) == len(findings.curve.cells)
    exact, sign = rows["exact Top-k", "32"], rows["sign()", "32"]
    assert exact["share"] == 1 and exact["gap"] is None and exact["verdict"] == ""
    assert sign["share"] == pytest.approx(8192 / 262144, rel=1e-3)
    place = findings.curve.place(findings.curve.cells[0].indexer)
    assert place is not None and rows["full attention", ""]["accuracy"] == pytest.approx(
        float(findings.accuracy.value[place]), rel=1e-3
    )
    front = front_of(list(rows.values()), "32")
    for cheap, dear in pairwise(front):
        assert cheap["share"] < dear["share"] and cheap["accuracy"] < dear["accuracy"]
    real = [row for row in rows.values() if row["kind"] == "real" and row["budget"] == "32"]
    for row in real:  # nobody stands above the front
        assert any(f["share"] <= row["share"] and f["accuracy"] >= row["accuracy"] for f in front)


def test_maps_stand_by_family_and_say_what_is_seen() -> None:
    curve = curves(*tables())[0]
    assert curve.budget is not None
    maps = head_maps(curve, curve.budget)
    order = [list(MARKS).index(one.family) for one in maps]
    assert order == sorted(order) and {"control", "quantized"} <= {one.family for one in maps}
    random = next(one for one in maps if one.name == "random()")
    assert "48 of 48 heads below 0.5" in random.takeaway and random.recall.shape == (8, 6)
    assert weakest(maps).startswith("Layer ")
    rows = [row for one in maps for row in one.rows]
    for chart in (one_map(), all_maps()):
        assert "viridis" not in vlc.vega_to_svg(filled(compiled(chart), {"cells": rows}))
