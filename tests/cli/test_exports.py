"""What commands write for other programs: CSV, LaTeX and JSON that say the same, whatever names hold."""

from __future__ import annotations

import csv
import json
import math
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from topkit.cli.commands import app
from topkit.cli.exits import run
from topkit.cli.table_text import csv_text, escaped, latex_text

ROOT = Path(__file__).parents[2]
RUN = ROOT / "results" / "fidelity-vs-accuracy"
Call = Callable[..., tuple[int, str, str]]
HOSTILE = "a_b & 100% #1 $x$ {y} \\end{tabular} ~ ^ <i> 'q' \"r\" `c` | -3"


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Call:
    """Run a command line in this process: exit code, stdout, stderr."""

    def _call(*words: object) -> tuple[int, str, str]:
        code = run(app, [str(word) for word in words])
        shown = capsys.readouterr()
        return code, shown.out, shown.err

    return _call


@pytest.fixture
def dump(tmp_path: Path) -> Path:
    """Six sequences of queries and keys."""
    drawn = torch.Generator().manual_seed(0)
    path = tmp_path / "own.safetensors"
    shapes = {"queries": (6, 4, 3, 16), "keys": (6, 2, 50, 16), "values": (6, 2, 50, 16)}
    save_file({name: torch.randn(*s, generator=drawn) for name, s in shapes.items()}, path)
    return path


def test_a_reports_numbers_are_the_same_in_each_form(call: Call, tmp_path: Path):
    table, latex = tmp_path / "cells.csv", tmp_path / "cells.tex"
    code, out, err = call("report", RUN, "-k", 16, "--csv", table, "--latex", latex, "--json")
    assert code == 0, err
    said = json.loads(out, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert set(said) == {"citation", "margin", "missing", "cells"}
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(said["cells"]) == 34
    for row, cell in zip(rows, said["cells"], strict=True):
        assert list(row) == list(cell)
        for name, text in row.items():
            assert text == ("" if cell[name] is None else str(cell[name]))
    (int4,) = [
        c for c in said["cells"] if (c["indexer"] or "").startswith("quantized(dtype='int4'")
    ]
    assert (int4["k"], int4["verdict"], int4["kind"]) == ("16", "as good", "real")
    assert int4["to_exact"] == pytest.approx(int4["accuracy"] - 0.953125)
    assert int4["low"] < int4["accuracy"] < int4["high"] and 0.9 < int4["mass_ratio"] <= 1
    assert said["citation"] in latex.read_text()
    assert "quantized(dtype=int4) & 16 & 0.96 [0.93, 0.97] & +0.00 [$-$0.01, +0.02] & as good" in latex.read_text()  # fmt: skip


def test_numbers_are_printed_without_a_page(call: Call, tmp_path: Path):
    place = tmp_path / "run"
    shutil.copytree(RUN, place, ignore=shutil.ignore_patterns("figures"))
    for words in (["--csv", "-"], ["--latex", "-"], ["--json"]):
        code, out, err = call("report", place, *words)
        assert code == 0 and out and not err, err
    assert not (place / "report.html").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--csv", "-", "--json"], "--csv - and --json would both be printed"),
        (["--csv", "-", "--latex", "-"], "--csv - and --latex - would both be printed"),
        (["--json", "--out", "x"], "--out is where the page goes"),
        (["--json", "-k", 7], "nothing was run at k = 7; there is -k"),
        (["--csv", "."], ". is a folder"),
    ],
)
def test_what_cannot_be_is_refused(words: list[Any], said: str, call: Call):
    code, out, err = call("report", RUN, *words)
    assert (code, out) == (2, "") and said in err and err.count("\n") == 1


@pytest.mark.slow
def test_a_measurement_and_a_comparison_have_numbers_and_a_page(
    call: Call, dump: Path, tmp_path: Path
):
    out, page = tmp_path / "run", tmp_path / "page.html"
    words = (dump, "--layout", "bhtd")
    code, text, err = call(
        *("measure", *words, "--indexer", "sign", "--indexer", "exact", "-k", "4,8", "--out", out),
        *("--csv", "-", "--html", page),
    )
    assert code == 0, err
    rows = list(csv.DictReader(text.splitlines()))
    assert [(row["indexer"], row["budget"]) for row in rows] == [
        *(("exact()", "4"), ("exact()", "8"), ("sign()", "4"), ("sign()", "8")),
    ]
    assert rows[2]["worst_row"].startswith("sample ")
    assert "sign() keeps" in page.read_text()
    code, text, err = call("report", out, "--latex", "-")
    assert code == 0 and "sign() & 4 & " in text and "% topkit " in text, err
    assert json.loads(call("report", out, "--json")[1])[2]["indexer"] == "sign()"
    code, text, err = call("report", out)
    assert code == 0 and Path(text.strip()).read_text() == page.read_text()

    asked = ("compare", *words, "--baseline", "exact", "--candidate", "sign", "-k", 8)
    code, text, err = call(*asked, "--csv", "-", "--html", page, "--latex", tmp_path / "c.tex")
    rows = list(csv.DictReader(text.splitlines()))
    assert code == 1 and [row["of"] for row in rows] == ["all", "layer", *["sample"] * 6]
    assert float(rows[0]["recall_low"]) < float(rows[0]["recall"]) < float(rows[0]["recall_high"])
    mean = sum(float(row["recall"]) for row in rows[2:]) / 6
    assert float(rows[0]["recall"]) == pytest.approx(mean)
    assert "Unsafe over 6 sequences" in page.read_text()
    assert "mass\\_lost\\_low" in (tmp_path / "c.tex").read_text()


def test_advice_on_the_command_line(call: Call):
    code, out, err = call("advise", RUN, "--margin", 0.05)
    assert code == 0, err
    assert [line.split()[2] for line in out.splitlines()[1:4]] == ["holds"] * 3
    assert out.splitlines()[-1].startswith("quantized(dtype=int4) at k = 16 is the cheapest of 3")
    said = json.loads(call("advise", RUN, "--margin", 0.05, "--json")[1])
    assert said["choice"]["indexer"].startswith("quantized(dtype='int4'")
    code, out, err = call("advise", RUN, "--against", "dense", "--margin", 0.05, "--json")
    assert code == 3 and json.loads(out)["choice"] is None and "none of 15 recipes" in err
    code, out, err = call("advise", RUN, "--margin", 0)
    assert code == 2 and "between 0 and 1" in err


def test_hostile_names_stay_in_their_cells():
    rows = [{HOSTILE: HOSTILE, "x": "[1]", "n": math.nan, "z": None}, {HOSTILE: "b\nc", "x": "y", "n": -0.5, "z": 1}]  # fmt: skip
    lines = latex_text(rows, f"{HOSTILE}\n\\input{{x}}").splitlines()
    assert lines[2] == r"\begin{tabular}{lllr}".replace("lllr", lines[2][16:-1])
    body = [line for line in lines if line.startswith("{}")]
    assert len(body) == 3
    for line in body:
        # Of unescaped signs only those between the cells are left.
        bare = re.sub(r"\\[&%$#_{}]|\\text\w+\{\}|\$-\$", "", line)
        assert bare.count("&") == 3 and not set(bare.removeprefix("{}")) & set("%$#_{}~^<>|\"'`")
        assert bare.count("\\") == 2 and line.endswith(r" \\")
    assert body[2].startswith("{}b c &") and "$-$0.5" in body[2]
    assert all(line.startswith("%") for line in lines[:2])  # a comment of several lines is one
    assert list(csv.reader(csv_text(rows).splitlines()[:2]))[1][0] == HOSTILE
    assert escaped("模\u202e") == "U+6A21"


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no LaTeX here")
def test_latex_sets_it(tmp_path: Path):
    table = latex_text([{HOSTILE: HOSTILE, "é ±": "[x]", "模": "-1"}], HOSTILE) + latex_text([])
    head = "\\documentclass{article}" + table.splitlines()[0].removeprefix("% ")
    whole = f"{head}\\begin{{document}}\n{table}\\end{{document}}\n"
    (tmp_path / "a.tex").write_text(whole, encoding="utf-8")
    words = ["pdflatex", "-draftmode", "-interaction=nonstopmode", "-halt-on-error", "a.tex"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:]
