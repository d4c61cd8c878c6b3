"""Intervals and correlations against slow renderings, and their coverage where the truth is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from topkit.experiments.study import stats


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
    """The variance of a mean from haystacks' totals, over that of independent questions, by loops."""
    clustered = binomial = 0.0
    cells, haystacks, questions = right.shape
    for cell in range(cells):
        mean = right[cell].sum() / (haystacks * questions)
        squares = 0.0
        for haystack in range(haystacks):
            squares += (right[cell, haystack].sum() - questions * mean) ** 2
        clustered += haystacks / (haystacks - 1) * squares / (haystacks * questions) ** 2
        binomial += mean * (1 - mean) / (haystacks * questions)
    return max(1.0, clustered / binomial) if binomial > 0 else float(questions)


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 9), st.integers(1, 5), st.integers(1, 4), st.integers(0, 2**16))
def test_the_design_effect_is_that_of_the_loops(haystacks, questions, cells, seed):
    right = np.random.default_rng(seed).random((cells, haystacks, questions)) < 0.6
    asked = np.full(haystacks, float(questions))
    found = stats.design_effect(right.mean(-1), asked)
    assert found == pytest.approx(slow_design_effect(right))


def test_one_question_a_haystack_gives_wilsons_interval():
    right = np.zeros((2, 30))
    right[0, :27], right[1, :9] = 1, 1
    found = stats.accuracy(right, np.ones(30))
    effect = stats.design_effect(right, np.ones(30))
    assert effect == pytest.approx(30 / 29)  # n - 1 in the variance, and nothing else
    for cell, wins in enumerate((27, 9)):
        z, n, p = 1.959964, 30 / effect, wins / 30
        root = math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        middle, wide = (p + z * z / (2 * n)) / (1 + z * z / n), z * root / (1 + z * z / n)
        assert list(found[cell]) == pytest.approx([p, middle - wide, middle + wide], abs=1e-6)
    whole = scipy_stats.binomtest(27, 30).proportion_ci(method="wilson")
    assert found.low[0] == pytest.approx(whole.low, abs=0.01)


def test_ceiling_and_floor_keep_their_width():
    rates = np.array([np.ones(24), np.zeros(24)])
    found = stats.accuracy(rates, np.full(24, 4.0))
    assert found.low[0] < 0.9 and found.high[0] == 1
    assert found.high[1] > 0.1 and found.low[1] == 0
    gap = stats.difference(rates[[0, 0]], np.full(24, 4.0), base=1)
    assert gap.low[0] < -0.05 and gap.high[0] > 0.05


@pytest.mark.parametrize("clustering", [0.0, 0.3])
def test_intervals_cover_what_they_say(clustering):
    truth = np.array([0.03, 0.2, 0.5, 0.8, 0.95, 0.99])
    rng = np.random.default_rng(0)
    asked, runs = np.full(24, 4.0), 500
    score, gap = np.zeros(len(truth)), np.zeros(len(truth))
    for _ in range(runs):
        rates = drawn(truth, 24, 4, clustering, rng).mean(-1)
        a, d = stats.accuracy(rates, asked), stats.difference(rates, asked, base=4)
        score += (a.low <= truth) & (truth <= a.high)
        gap += (d.low <= truth - truth[4]) & (truth - truth[4] <= d.high)
    assert (score / runs).min() > 0.90 and (score / runs).mean() > 0.93
    assert (gap / runs).min() > 0.91 and (gap / runs).mean() < 0.995


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


def test_correlations_are_spearmans():
    rng = np.random.default_rng(3)
    recall, mass, rates = rng.random((3, 9, 12))
    asked = rng.integers(1, 5, 12).astype(float)
    found = stats.ordering(recall, mass, rates, asked, draws=200)
    means = [x @ asked / asked.sum() for x in (recall, mass, rates)]
    by_recall = np.corrcoef(scipy_stats.rankdata(means[0]), scipy_stats.rankdata(means[2]))[0, 1]
    by_mass = np.corrcoef(scipy_stats.rankdata(means[1]), scipy_stats.rankdata(means[2]))[0, 1]
    assert float(found.recall.value) == pytest.approx(by_recall)
    assert float(found.mass.value) == pytest.approx(by_mass)
    assert float(found.mass_less_recall.value) == pytest.approx(by_mass - by_recall)
    assert found.recall.low <= found.recall.value <= found.recall.high


def test_the_same_seed_gives_the_same_intervals():
    recall, mass, rates = np.random.default_rng(4).random((3, 6, 10))
    first, second = (stats.ordering(recall, mass, rates, np.ones(10), draws=50) for _ in "ab")
    assert first == second


def test_equal_accuracies_show_no_order():
    recall, mass = np.random.default_rng(5).random((2, 6, 10))
    found = stats.ordering(recall, mass, np.ones((6, 10)), np.ones(10), draws=50)
    assert list(found.recall) == list(found.mass) == [0, 0, 0]


def test_an_order_by_luck_of_the_draw_of_cells_is_not_shown():
    """Labels of cells shuffled: every haystack agrees, and only drawing cells anew tells."""
    rng, shown, runs = np.random.default_rng(6), 0, 120
    fidelity = np.linspace(0.1, 0.9, 10)[:, None] + rng.normal(0, 0.01, (10, 24))
    for seed in range(runs):
        rates = rng.permutation(fidelity)
        found = stats.ordering(
            fidelity, fidelity, rates, np.full(24, 4.0), draws=300, seed=seed
        ).recall
        shown += found.low > 0 or found.high < 0
    assert shown / runs < 0.12


def test_cells_that_agree_on_few_haystacks_may_still_differ():
    """Two haystacks, all alike: no ground to call one as good as the other."""
    found = stats.difference(np.array([[1.0, 0.0], [1.0, 0.0]]), np.array([4, 4]), 0)
    assert found.value[1] == 0 and found.low[1] < -0.2 and found.high[1] > 0.2
    many = stats.difference(np.tile([[1.0, 0.0]], (2, 64)), np.full(128, 4), 0)
    assert -0.05 < many.low[1] < 0 < many.high[1] < 0.05
