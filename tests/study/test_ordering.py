"""Ranks, and predictions of families left out, against slow renderings and where the truth is known."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from topkit.experiments.study.ordering import family_means, isotonic, ordering, prediction


def test_correlations_are_spearmans():
    rng = np.random.default_rng(3)
    recall, mass, rates = rng.random((3, 9, 12))
    asked = rng.integers(1, 5, 12).astype(float)
    found = ordering(recall, mass, rates, asked, draws=200)
    means = [x @ asked / asked.sum() for x in (recall, mass, rates)]
    by_recall = np.corrcoef(scipy_stats.rankdata(means[0]), scipy_stats.rankdata(means[2]))[0, 1]
    by_mass = np.corrcoef(scipy_stats.rankdata(means[1]), scipy_stats.rankdata(means[2]))[0, 1]
    assert float(found.recall.value) == pytest.approx(by_recall)
    assert float(found.mass.value) == pytest.approx(by_mass)
    assert float(found.mass_minus_recall.value) == pytest.approx(by_mass - by_recall)
    assert found.recall.low <= found.recall.value <= found.recall.high


def test_the_same_seed_gives_the_same_intervals():
    recall, mass, rates = np.random.default_rng(4).random((3, 6, 10))
    first, second = (ordering(recall, mass, rates, np.ones(10), draws=50) for _ in "ab")
    assert first == second


def test_equal_accuracies_show_no_order():
    recall, mass = np.random.default_rng(5).random((2, 6, 10))
    found = ordering(recall, mass, np.ones((6, 10)), np.ones(10), draws=50)
    assert list(found.recall) == list(found.mass) == [0, 0, 0]


def test_an_order_by_luck_of_the_draw_of_cells_is_not_shown():
    """Labels of cells shuffled: every haystack agrees, and only drawing cells anew tells."""
    rng, shown, runs = np.random.default_rng(6), 0, 120
    fidelity = np.linspace(0.1, 0.9, 10)[:, None] + rng.normal(0, 0.01, (10, 24))
    for seed in range(runs):
        rates = rng.permutation(fidelity)
        found = ordering(fidelity, fidelity, rates, np.full(24, 4.0), draws=300, seed=seed).recall
        shown += found.low > 0 or found.high < 0
    assert shown / runs < 0.12


def slow_isotonic(x, y, weights):
    """The least squares curve that never falls, by the min-max formula, over distinct places."""
    places = sorted(set(x))

    def mean(a, b):
        those = (x >= places[a]) & (x <= places[b])
        return (y[those] * weights[those]).sum() / weights[those].sum()

    n = len(places)
    return [max(min(mean(a, b) for b in range(i, n)) for a in range(i + 1)) for i in range(n)]


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 12), st.integers(0, 2**16))
def test_the_curve_that_never_falls_is_the_best(n, seed):
    rng = np.random.default_rng(seed)
    x, y, weights = rng.integers(0, 6, n) / 5, rng.random(n), rng.random(n) + 0.1
    places, heights = isotonic(x, y, weights)
    assert list(places) == sorted(set(x)) and np.all(np.diff(heights) >= 0)
    assert heights == pytest.approx(slow_isotonic(x, y, weights))


def test_a_family_is_predicted_by_the_others_and_counts_once():
    """By hand: three families, one of two cells, of which mass predicts all but the first exactly."""
    mass, goal = np.array([0.1, 0.2, 0.3, 0.4]), np.array([0.0, 0.5, 0.5, 1.0])
    families = ["a", "b", "b", "c"]
    found = prediction(np.zeros(4), mass, goal, families)
    # Without a, its mass is below all others: 0.5. Without b, halfway between a and c: 1/3 and 2/3.
    # Without c, above all others: 0.5.
    errors = [0.5, (1 / 6 + 1 / 6) / 2, 0.5]
    assert float(found.mass.value) == pytest.approx(np.mean(errors))
    # Equal recalls predict as nothing does: by the families' mean.
    others = [0.75, 0.0, 0.25]
    flat = [0.75 - 0.0, 0.0, 1.0 - 0.25]
    assert others == [1 - 0.25, 0, 0.25] and float(found.neither.value) == pytest.approx(
        np.mean(flat)
    )
    assert list(found.recall) == pytest.approx(list(found.neither))
    slow = scipy_stats.ttest_1samp(np.array(errors) - flat, 0).confidence_interval()
    assert list(found.mass_minus_recall)[1:] == pytest.approx([slow.low, slow.high])


def test_copies_of_a_cell_in_its_family_change_nothing():
    rng = np.random.default_rng(0)
    recall, mass, goal = rng.random((3, 6))
    families = list("abcdef")
    more = np.array([0, 0, 0, 1, 2, 3, 4, 5])
    one = prediction(recall, mass, goal, families)
    other = prediction(recall[more], mass[more], goal[more], [families[i] for i in more])
    for name in ("recall", "mass", "neither", "mass_minus_recall"):
        assert list(getattr(one, name)) == pytest.approx(list(getattr(other, name)))


def test_families_have_the_means_of_their_cells():
    values = np.array([[1.0, 2.0], [5.0, 5.0], [3.0, 4.0]])
    assert family_means(values, ["a", "b", "a"]).tolist() == [[2.0, 3.0], [5.0, 5.0]]
