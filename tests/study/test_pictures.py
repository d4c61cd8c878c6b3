"""PNGs are the same whoever draws them, and are there where the other process fails."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import altair as alt
import pytest

from topkit.experiments.study import pictures as module
from topkit.experiments.study.drawing import compiled, filled
from topkit.experiments.study.pictures import Pictures, pictures


def figure(number: int) -> dict[str, Any]:
    chart = alt.Chart(alt.NamedData("cells"), width=60, height=30).mark_point()
    return filled(compiled(chart.encode(x="x:Q")), {"cells": [{"x": 1}, {"x": number}]})


def drawn(made: Pictures, folder: Path) -> list[bytes]:
    folder.mkdir()
    for number in range(3):
        made.add(figure(number), folder / f"of.k-1.{number}")
    made.close()
    return [(folder / f"of.k-1.{n}.{kind}").read_bytes() for n in range(3) for kind in ("png", "svg")]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("fails", ["no", "at once", "at the start"])
def test_pictures_are_the_same_whoever_draws_them(
    fails: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = drawn(Pictures(None), tmp_path / "here")
    monkeypatch.setattr(module.os, "cpu_count", lambda: 2)
    if fails != "no":
        command = {"at once": "/bin/false", "at the start": "/nowhere/python"}[fails]
        monkeypatch.setattr(sys, "executable", command)
    with pictures(module.FEWEST) as made:
        assert (made._other is None) == (fails == "at the start")
        assert drawn(made, tmp_path / "there") == here


def test_few_figures_or_one_core_start_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    with pictures(module.FEWEST - 1) as made:
        assert made._other is None
    monkeypatch.setattr(module.os, "cpu_count", lambda: 1)
    with pictures(99) as made:
        assert made._other is None


@pytest.mark.slow
def test_a_place_that_cannot_be_written_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module.os, "cpu_count", lambda: 2)
    with pytest.raises(FileNotFoundError), pictures(99) as made:
        made.add(figure(1), tmp_path / "absent" / "a")
