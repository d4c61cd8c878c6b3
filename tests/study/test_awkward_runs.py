"""Runs that are empty, partial, of one haystack, all right or all wrong, without numbers: a page that says so."""

from __future__ import annotations

import json
import re
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from known_study import tables, write
from topkit.cli.commands import app
from topkit.cli.exits import run as console
from topkit.errors import InputError, NoRows
from topkit.experiments.runs.cells import DENSE
from topkit.experiments.runs.run_file import describe
from topkit.experiments.study.curves import load
from topkit.experiments.study.report import reported

EVIL = "</script><img src=x onerror=alert(1)>"
ASKED = {
    "model": EVIL, "tasks": [{"task": "niah-single"}], "lengths": [64], "samples": 2, "sparse_from": "question",
    "cells": [{"indexer": "sign()", "budget": "4"}],
}  # fmt: skip


def text_of(page: str) -> str:
    """What a reader sees; that nothing of it is a script is asserted on the way."""
    bare = re.sub(r"<(script|style)[^>]*>.*?</\1>", "", page, flags=re.S)
    assert "<img" not in bare and "<script" not in bare
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", bare.partition("<body>")[2])).split())


def begun(run: Path) -> Path:
    """A run that has been asked for something and holds no row of it."""
    run.mkdir(parents=True, exist_ok=True)
    describe(run, {"seed": 0, "topkit": "0.2.0"}, **ASKED)
    return run


def small() -> tuple[pa.Table, pa.Table]:
    """Full attention alone, which is cheap to draw."""
    table, heads = tables(haystacks=2)
    rows = [row for row in table.to_pylist() if row["indexer"] == DENSE]
    return pa.Table.from_pylist(rows, table.schema), heads.slice(0, 0)


def test_an_empty_run_has_a_page_that_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run = begun(tmp_path)
    assert console(app, ["report", str(run)]) == 0
    said = capsys.readouterr()
    assert "holds no rows yet; run the same command" in said.err
    text = text_of(Path(said.out.strip()).read_text())
    assert text.startswith("Nothing to report yet") and EVIL in text
    assert "niah-single, 64 tokens: 2 of 2 haystacks lack rows (0, 1)" in text
    # What wants numbers has none.
    for words in (["--json"], ["--require", "sign"]):
        assert console(app, ["report", str(run), *words]) == 2
    with pytest.raises(NoRows, match="holds no rows yet"):
        load(run)
    with pytest.raises(InputError, match="holds no run"):
        reported(tmp_path / "nothing")


@pytest.mark.slow
def test_a_study_none_of_whose_runs_has_begun_has_a_page_too(tmp_path: Path):
    runs = [{"model": model, "seed": 0, "folder": model} for model in ("one", "two")]
    (tmp_path / "study.json").write_text(json.dumps({"model": "one, two", "runs": runs}))
    path, (line,) = reported(tmp_path)
    assert "none of whose runs has rows yet" in line
    assert "none of whose runs has rows yet" in text_of(path.read_text())
    begun(tmp_path / "two")
    assert "niah-single, 64 tokens: 2 of 2" in text_of(reported(tmp_path)[0].read_text())
    write(tmp_path / "one", *small())
    path, lines = reported(tmp_path, pictures=False)
    assert [line for line in lines if line.startswith("two: ") and "holds no rows yet" in line]
    assert "Not finished: two:" in text_of(path.read_text())


def test_haystacks_that_no_two_cells_share_are_no_rows(tmp_path: Path):
    table, heads = tables(haystacks=4)
    rows = [r for r in table.to_pylist() if (r["indexer"] == DENSE) == (r["haystack"] < 2)]
    path, _ = reported(write(tmp_path, pa.Table.from_pylist(rows, table.schema), heads))
    assert "No haystack of niah-multikey at 4096 was run by every cell" in text_of(path.read_text())


def changed(row: dict[str, Any], case: str) -> dict[str, Any]:
    """A row of the known study as a case has it."""
    name, _, value = case.partition(" ")
    of = value.removeprefix("of ")
    right = {"right": 1.0, "wrong": 0.0}.get(name)
    if right is not None:
        return {**row, "exact_match": right, "token_accuracy": right}
    if value.startswith("of ") and row["indexer"] != f"{of}()":
        return row
    return {**row, name: None if value == "null" else np.nan}


NOTHING = "Nothing is shown"
CASES = {
    "right": NOTHING, "wrong": "exact Top-k itself scores 0.00",
    "exact_match nan": "has no score", "exact_match null": "has no score",
    "exact_match of exact": "has no score", "token_accuracy nan": NOTHING, "answer_tokens nan": NOTHING,
    "nll nan": NOTHING, "kl null": NOTHING, "recall nan": NOTHING, "mass null": NOTHING,
    "bytes_read nan": NOTHING, "kept of exact": NOTHING, "exact_match of sign": NOTHING,
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("haystacks", [1, 6])
@pytest.mark.parametrize("case", CASES)
def test_what_is_no_number_is_blank_and_said(case: str, haystacks: int, tmp_path: Path):
    table, heads = tables(haystacks=haystacks)
    rows = [changed(row, case) for row in table.to_pylist()]
    run = write(tmp_path, pa.Table.from_pylist(rows, table.schema), heads)
    page = reported(run, pictures=False)[0].read_text()
    text = text_of(page)
    assert CASES[case] in text
    assert not re.search(r"\b(nan|inf|null)\b", text, re.I)
    assert ("is no number" in text) == case.startswith("exact_match")
    # Numbers for the figures: none that JSON does not know.
    held = re.findall(r'<script type="application/json" id="figures">(.*?)</script>', page, re.S)
    json.loads(held[0], parse_constant=pytest.fail)
