"""Bars follow a run's events; what a plan behind another one is going to do is said as it stands."""

from __future__ import annotations

import pytest

from topkit.cli.progress import bar
from topkit.experiments.runs.plan import Event


def test_lines_of_a_plan_that_follows_are_said_whole(capsys: pytest.CaptureFixture[str]) -> None:
    line = "pilot: exact Top-k 0.50 [0.30, 0.95] at k = 16, of " + "many tasks and " * 20
    with bar() as draw:
        draw(Event("piloting", 0, 1))
        draw(Event("piloting", 1, 1))
        draw(Event("evaluating", 0, 2, (line,)))
        draw(Event("evaluating", 2, 2))
    said = capsys.readouterr()
    assert said.out == ""
    assert line.strip() in said.err
    assert "piloting" in said.err and "evaluating" in said.err
    assert said.err.count("100%") == 2


def test_nothing_left_draws_no_bar(capsys: pytest.CaptureFixture[str]) -> None:
    with bar() as draw:
        draw(Event("evaluating", 0, 0))
    assert capsys.readouterr().err == ""
