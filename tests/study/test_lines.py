"""Figures of lines: what is drawn of each series, and pages that hold them."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import vl_convert as vlc

from topkit.experiments.study.block_page import write_page
from topkit.experiments.study.blocks import Heading, Items
from topkit.experiments.study.drawing import bare, compiled, filled
from topkit.experiments.study.lines import GREY, Series, lines

SERIES = [
    Series("own", [(1.0, 0.2, 0.1, 0.3), (2.0, math.nan, 0.0, 1.0)], level=0.9),
    Series("coarse", [(1.0, 0.1)], of="own", dashed=True),
    Series("beside <b>", [(2.0, 0.4, math.nan, math.nan)], faint=True, level=math.nan),
]


def test_rows_are_the_numbers_that_there_are() -> None:
    (panel,) = lines("one", SERIES, "said", x="layer", y="kept").panels
    rows = [
        {name: row.get(name) for name in ("series", "kind", "x", "y", "low", "high")}
        for row in panel.data["lines"]
    ]
    assert rows == [
        {"series": "own", "kind": "level", "x": None, "y": 0.9, "low": None, "high": None},
        {"series": "own", "kind": "point", "x": 1.0, "y": 0.2, "low": 0.1, "high": 0.3},
        {"series": "coarse", "kind": "point", "x": 1.0, "y": 0.1, "low": None, "high": None},
        {"series": "beside <b>", "kind": "point", "x": 2.0, "y": 0.4, "low": None, "high": None},
    ]


def test_a_series_of_another_has_its_colour_and_all_stand_in_the_legend() -> None:
    block = lines("one", SERIES, "said", x="layer", y="kept", scale="log")
    spec = compiled(block.draw())
    (colours,) = [scale for scale in spec["scales"] if scale["name"] == "color"]
    assert colours["domain"] == [one.name for one in SERIES]
    own, coarse, faint = colours["range"]
    assert own == coarse and faint == GREY != own
    assert bare(spec)["legends"] and bare({**spec, "usermeta": {}}).get("legends") is None
    svg = vlc.vega_to_svg(filled(spec, block.data))
    assert all(name in svg for name in ("own", "coarse", "beside &lt;b&gt;"))
    (dots,) = re.findall(r'<g class="mark-symbol role-mark dots_marks".*?</g>', svg, re.DOTALL)
    assert dots.count("<path") == 3


def test_a_page_of_blocks_holds_figures_and_markup_as_text(tmp_path: Path) -> None:
    figure = lines("one", SERIES, "a caption <i>", x="layer", y="kept", points=True)
    path = write_page(tmp_path, "lines", "A title", [Heading("Seen"), Items(["<script>"]), figure])
    page = path.read_text()
    assert "&lt;script&gt;" in page and "a caption &lt;i&gt;" in page
    data = json.loads(page.split('id="figures">')[1].split("</script>")[0])
    assert list(data["figures"]) == ["one"] and len(data["tables"]) == 1
    text = (tmp_path / "lines.md").read_text()
    assert text.startswith("# A title\n\n## Seen\n\n- <script>")
    (shown,) = re.findall(r"\]\((.*)\)", text)
    assert (tmp_path / shown).is_file()
    assert {x.name for x in (tmp_path / "figures").iterdir()} == {"one.png", "one.svg"}
