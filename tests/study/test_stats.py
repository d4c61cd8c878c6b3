"""Intervals against slow renderings, and their coverage where the truth is known."""

from __future__ import annotations

import importlib.util
import math
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from topkit.errors import InputError
from topkit.experiments.study import stats


def _coverage():
    """tools/coverage.py, by another name than that of a package which may be installed."""
    path = Path(__file__).parents[2] / "tools" / "coverage.py"
    spec = importlib.util.spec_from_file_location("topkit_coverage", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


coverage = _coverage()


def drawn(truth, haystacks, questions, clustering, rng):
    """Right answers [cells, haystacks, questions]: haystacks make their questions harder together."""
    cells = len(truth)
    shared = rng.normal(size=(1, haystacks, 1)) + rng.normal(size=(cells, haystacks, 1))
    own = rng.normal(size=(1, haystacks, questions)) + rng.normal(
        size=(cells, haystacks, questions)
    )
    ease = math.sqrt(clustering / 2) * shared + math.sqrt((1 - clustering) / 2) * own
    return ease < scipy_stats.norm.ppf(truth)[:, None, None]


def test_a_mean_has_students_interval_over_haystacks():
    values = np.random.default_rng(0).normal(2, 3, (2, 9))
    value, low, high = stats.mean(values, np.full(9, 4.0))[1]
    slow = scipy_stats.ttest_1samp(values[1], 0).confidence_interval()
    assert (value, low, high) == pytest.approx((values[1].mean(), slow.low, slow.high))
    # A haystack of twice the questions counts as much as two of them.
    assert stats.mean(np.array([[1.0, 4.0]]), np.array([2, 1])).value == pytest.approx([2])
    assert np.isnan(stats.mean(values[:, :1], np.ones(1)).low).all()


def slow_design_effect(right):
    """Of one cell's answers [haystacks, questions], by loops, in squares of one question."""
    haystacks, questions = right.shape
    mean = right.sum() / right.size
    squares = sum((row.sum() - questions * mean) ** 2 for row in right)
    together = haystacks / (haystacks - 1) * squares
    apart = right.size * mean * (1 - mean)
    # One question's worth that is decided by its haystack.
    return (together + 1) / (apart + 1 / questions)


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 9), st.integers(1, 5), st.integers(1, 4), st.integers(0, 2**16))
def test_the_design_effect_is_that_of_the_loops(haystacks, questions, cells, seed):
    right = np.random.default_rng(seed).random((cells, haystacks, questions)) < 0.6
    effects = stats.design_effect(right.mean(-1), np.full(haystacks, float(questions)))
    assert effects == pytest.approx([slow_design_effect(cell) for cell in right])


def test_a_cell_has_a_design_effect_of_its_own():
    """Whole haystacks decide the first; the others say nothing of it, and it nothing of them."""
    rng, asked = np.random.default_rng(0), np.full(128, 4.0)
    decided = (rng.random(128) < 0.5).astype(float)
    free = rng.binomial(4, 0.5, (9, 128)) / 4
    effects = stats.design_effect(np.vstack([decided, free]), asked)
    assert effects[0] == pytest.approx(4, rel=0.02)
    assert effects[1:] == pytest.approx(np.ones(9), abs=0.3)
    assert stats.accuracy(decided[None], asked).reach[0] == pytest.approx(
        stats.accuracy(np.vstack([decided, free]), asked).reach[0]
    )


def test_a_cell_that_never_errs_counts_each_haystack_as_one_question():
    assert stats.design_effect(np.ones((1, 24)), np.full(24, 4.0)) == pytest.approx([4])
    low = scipy_stats.binomtest(24, 24).proportion_ci(method="wilson").low
    assert stats.accuracy(np.ones((1, 24)), np.full(24, 4.0)).low[0] == pytest.approx(low)


@pytest.mark.parametrize("haystacks", [3, 30])
def test_haystacks_that_decide_give_wilsons_interval(haystacks):
    """No mean in 0..1 varies more than an answer that is right or wrong: no interval is wider."""
    wins = 2 * haystacks // 3
    right = (np.arange(haystacks) < wins).astype(float)[None]
    whole = scipy_stats.binomtest(wins, haystacks).proportion_ci(method="wilson")
    for questions in (1.0, 4.0):
        interval = stats.accuracy(right, np.full(haystacks, questions))
        assert list(interval[0]) == pytest.approx([wins / haystacks, whole.low, whole.high])


def test_ceiling_and_floor_keep_their_width():
    rates = np.array([np.ones(24), np.zeros(24)])
    found = stats.accuracy(rates, np.full(24, 4.0))
    assert found.low[0] < 0.9 and found.high[0] == 1
    assert found.high[1] > 0.1 and found.low[1] == 0
    gap = stats.difference(rates[[0, 0]], np.full(24, 4.0), base=1)
    assert gap.low[0] < -0.05 and gap.high[0] > 0.05


KINDS = ("independent", "a wording each, which decides", "shared wordings, which decide")


@pytest.mark.parametrize("haystacks", [24, 128])
def test_intervals_cover_what_they_say(haystacks):
    """Also of cells that the wordings decide, beside others in the same study."""
    setting = coverage.Setting(KINDS, haystacks, (0.05, 0.5, 0.8, 0.95))
    shares = coverage.covered(setting, studies=300)
    assert shares.keys() == {"accuracy", "minus 0.95", "minus 0.5"}
    for share in shares.values():
        # The standard error of each is 0.013, and the ends of the range are covered less evenly.
        assert np.nanmin(share) > 0.88 and 0.935 < np.nanmean(share) < 0.98


@pytest.mark.slow
def test_every_setting_is_covered():
    """Accuracy everywhere; differences but between the two ends of the range, over few haystacks."""
    for setting in coverage.settings():
        for of, shares in coverage.covered(setting, studies=1000).items():
            known = shares[np.isfinite(shares)]
            few = of == "minus 0.95" and setting.haystacks < 64
            assert known.min() > (0.88 if few else 0.915), (setting, of)
            assert np.median(known) == pytest.approx(0.958, abs=0.02), (setting, of)
            # 0.935 to 0.968 of 4,000 studies; the standard error of each is 0.007 here.
            decided = shares[:, coverage.deciding(setting, of)]
            decided = decided[np.isfinite(decided)]
            assert ((decided > 0.91) & (decided < 0.99)).all(), (setting, of)


def test_the_table_of_coverage_says_what_lies_outside(monkeypatch, capsys):
    monkeypatch.setattr(coverage, "settings", lambda: [coverage.Setting(("independent",), 8)])
    coverage.main(["2"])
    out = capsys.readouterr().out
    assert out.count("| independent |") == 3 and "2 studies a row" in out and "*" in out
    assert "haystacks or more decide" not in out  # of 8
    monkeypatch.setattr(coverage, "settings", lambda: [coverage.Setting(("independent",), 24)])
    coverage.main(["2"])
    # 0.2, 0.5 and 0.8 alone, minus a cell of 0.5 two of them, and none minus one of 0.95.
    assert "The 5 that 4.5 haystacks or more decide: " in capsys.readouterr().out
    with pytest.raises(InputError, match="number of studies"):
        coverage.main(["none"])


@pytest.mark.parametrize(("haystacks", "questions"), [(3, 4), (3, 24), (4, 24)])
def test_intervals_cover_with_few_haystacks(haystacks, questions):
    truth, runs = np.array([0.2, 0.5, 0.8]), 500
    rng = np.random.default_rng(0)
    asked = np.full(haystacks, float(questions))
    score, gap = np.zeros(3), np.zeros(3)
    for _ in range(runs):
        rates = drawn(truth, haystacks, questions, 0.3, rng).mean(-1)
        a, d = stats.accuracy(rates, asked), stats.difference(rates, asked, base=2)
        score += (a.low <= truth) & (truth <= a.high)
        gap += (d.low <= truth - truth[2]) & (truth - truth[2] <= d.high)
    assert min(score.min(), gap.min()) / runs > 0.87


def test_a_percentile_bootstrap_would_not():
    """Why the intervals are not simply bootstrapped: near 1 the percentiles cover far too little."""
    rng, covered = np.random.default_rng(1), 0
    for _ in range(200):
        rates = drawn(np.array([0.99]), 24, 4, 0.0, rng).mean(-1)
        means = rates[0][rng.integers(24, size=(400, 24))].mean(1)
        low, high = np.quantile(means, [0.025, 0.975])
        covered += low <= 0.99 <= high
    assert covered / 200 < 0.75


def test_differences_are_paired_and_antisymmetric():
    rng = np.random.default_rng(2)
    asked = np.full(24, 4.0)
    rates = drawn(np.array([0.7, 0.6, 0.9]), 24, 4, 0.3, rng).mean(-1)
    one, other = stats.difference(rates, asked, 0), stats.difference(rates, asked, 1)
    assert list(one[1]) == pytest.approx([-other.value[0], -other.high[0], -other.low[0]])
    assert list(one[0]) == [0, 0, 0]
    same_questions = stats.difference(rates[[0, 1, 1]], asked, 0).reach[1]
    apart = rates.copy()
    apart[1] = rng.permutation(apart[1])
    assert same_questions != stats.difference(apart, asked, 0).reach[1]


def test_cells_that_agree_on_few_haystacks_may_still_differ():
    """Two haystacks, all alike: no ground to call one as good as the other."""
    found = stats.difference(np.array([[1.0, 0.0], [1.0, 0.0]]), np.array([4, 4]), 0)
    assert found.value[1] == 0 and found.low[1] < -0.2 and found.high[1] > 0.2
    many = stats.difference(np.tile([[1.0, 0.0]], (2, 64)), np.full(128, 4), 0)
    assert -0.05 < many.low[1] < 0 < many.high[1] < 0.05
