"""The page of a run that holds no rows yet: that it does, what was asked for, what to do."""

# pyright: strict, reportMissingTypeStubs=false, reportUnknownMemberType=false
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false
# (pyarrow comes without types.)
from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from topkit.experiments.evaluate.missing import unfinished
from topkit.experiments.runs import run_file
from topkit.experiments.runs.parts import write_whole
from topkit.experiments.study.blocks import Block, Heading, Items, Paragraph, in_page
from topkit.experiments.study.page import render
from topkit.experiments.study.reading import RUNS
from topkit.experiments.study.run_facts import run_facts
from topkit.experiments.study.sheet import Sheet

TITLE = "Nothing to report yet"
_PLACE = ("task", "length", "sparse_from", "haystack", "indexer", "budget")


def write_empty(folder: Path, why: str, places: Sequence[Path], study: Mapping[str, Any]) -> Path:
    """Write a folder's report.html, of runs that hold nothing to show; why: what is missing."""
    runs = [place / str(one["folder"]) for place in places for one in study.get(RUNS, ())]
    described = [run for place in (*places, *runs) if (run := run_file.read(place)) is not None]
    none = pa.table({name: pa.nulls(0) for name in _PLACE})
    asked = unfinished(described, none)
    facts = [f"{term}: {text}" for term, text in run_facts(described, study)]
    made: list[Block] = [
        Paragraph(f"{why[:1].upper()}{why[1:]}."),
        *([Heading("What was asked for"), Items(asked)] if asked else []),
        *([Heading("The run"), Items(facts)] if facts else []),
    ]
    sheet = Sheet(folder, None)
    page = render("blocks.html", sheet, title=TITLE, made=in_page(made, sheet), families=[])
    path = folder / "report.html"
    write_whole(path, lambda file: file.write_text(page, encoding="utf-8"), parents=False)
    return path
