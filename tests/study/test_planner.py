"""Equality at a margin: its interval against a slow rendering, and its errors where the truth is known."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from topkit.errors import InputError
from topkit.experiments.study.planner import chance, discordance_of, haystacks_needed
from topkit.experiments.study.stats import paired


def _tool(name: str) -> Any:
    """A file of tools, by another name than that of a package which may be installed."""
    path = Path(__file__).parents[2] / "tools" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"topkit_{name}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


planner = _tool("planner")


def slow_high(gaps: list[float]) -> float:
    """The largest end that the squares still allow, step by step from 1 down."""
    n = len(gaps)
    mean, square = sum(gaps) / n, sum(d * d for d in gaps) / n
    step = (sum(d * d for d in gaps) + 1) / (sum(abs(d) for d in gaps) + 1)
    z = scipy_stats.t.ppf(0.975, n - 1)
    spread = square * n / (n - 1) - mean**2
    ends = np.arange(1.0, mean, -1e-4)
    implied = step * np.abs(ends) - ends**2
    allowed = n * (mean - ends) ** 2 <= z**2 * np.maximum(spread, implied)
    return float(ends[allowed][0]) if allowed.any() else mean


@settings(max_examples=30, deadline=None)
@given(st.lists(st.sampled_from([-1.0, -0.5, 0.0, 0.0, 0.0, 0.5, 1.0]), min_size=3, max_size=60))
def test_the_ends_are_those_of_the_squares(gaps: list[float]):
    rates = np.stack([np.zeros(len(gaps)), gaps])
    _, low, high = paired(rates, np.ones(len(gaps)), 0)[1]
    assert high == pytest.approx(slow_high(gaps), abs=2e-4)
    assert low == pytest.approx(-slow_high([-d for d in gaps]), abs=2e-4)


def test_what_both_cells_have_in_common_changes_nothing():
    rng = np.random.default_rng(0)
    gaps, asked = rng.choice([-0.5, 0, 0, 0.5], 40), rng.integers(1, 5, 40).astype(float)
    for base in (np.zeros(40), rng.random(40)):
        found = paired(np.stack([base, base + gaps, base]), asked, 0)
        assert list(found[1]) == pytest.approx(
            list(paired(np.stack([np.zeros(40), gaps]), asked, 0)[1])
        )
        assert list(found[0]) == [0, 0, 0] and found.low[2] < 0 < found.high[2]
    back = paired(np.stack([gaps, np.zeros(40)]), asked, 0)[1]
    one = paired(np.stack([np.zeros(40), gaps]), asked, 0)[1]
    assert list(back) == pytest.approx([-one.value, -one.high, -one.low])


def test_cells_that_never_differ_need_as_many_as_a_loss_could_hide_in():
    needed = haystacks_needed(0.01, 0.0)
    assert needed is not None
    for count, equal in ((needed, True), (needed - 4, False)):
        _, low, high = paired(np.ones((2, count)), np.ones(count), 0)[1]
        assert (low > -0.01 and high < 0.01) is equal
    # A loss of the whole margin shows itself in all but one study of forty.
    assert 0.99**needed < 0.025


@pytest.mark.parametrize(
    ("margin", "discordance"), [(0.01, 0.01), (0.05, 0.05), (0.05, 0.3), (0.02, 0.002)]
)
def test_the_planned_haystacks_give_a_verdict(margin: float, discordance: float):
    needed = haystacks_needed(margin, discordance)
    assert needed is not None
    setting = planner.Setting("one question", discordance, 0.0, needed)
    _, equal = planner.simulated(setting, 600, margin=margin)
    assert equal == pytest.approx(chance(needed, margin, discordance), abs=0.06)
    assert equal > 0.75
    _, half = planner.simulated(
        planner.Setting("one question", discordance, 0.0, needed // 2), 600, margin=margin
    )
    assert half < 0.8


@pytest.mark.parametrize("kind", list(planner.KINDS))
@pytest.mark.parametrize("discordance", [0.02, 0.1])
def test_intervals_hold_the_truth_and_a_whole_margin_is_seldom_called_equal(
    kind: str, discordance: float
):
    for difference in (0.0, -0.01):
        setting = planner.Setting(kind, discordance, difference, 1500)
        assert setting.deciding
        held, equal = planner.simulated(setting, 800)
        assert 0.93 <= held <= 0.97
        if difference:
            assert equal <= 0.05


@pytest.mark.slow
def test_every_setting_of_the_planner():
    for setting in planner.settings():
        held, equal = planner.simulated(setting, 2000)
        if setting.deciding:
            assert 0.93 <= held <= 0.97, setting
        # Where a handful of haystacks decides, outcomes are few, and between two of them coverage steps.
        assert held >= 0.91, setting
        if setting.difference == -planner.MARGIN:
            assert equal <= 0.05, setting


def test_a_plan_counts_one_haystack_more_than_was_seen_to_differ():
    assert discordance_of(np.array([0.0, 0.0, 0.0, 1.0]), np.ones(4)) == pytest.approx(2 / 5)
    assert discordance_of(np.zeros(9), np.ones(9)) == pytest.approx(0.1)


def test_what_is_no_share_is_refused():
    for words, margin, discordance in (
        ("margin", 0.0, 0.1),
        ("margin", 1.0, 0.1),
        ("discordance", 0.01, 1.5),
        ("discordance", 0.01, float("nan")),
    ):
        with pytest.raises(InputError, match=words):
            haystacks_needed(margin, discordance)
    assert haystacks_needed(1e-6, 1.0) is None
    with pytest.raises(InputError, match="number of studies"):
        planner.main(["many"])
