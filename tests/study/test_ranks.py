"""Ranks: by the definitions on small numbers, and by simulation of studies whose truth is known."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from topkit.experiments.study.ranks import (
    best_of_family,
    front,
    holm,
    least_haystacks,
    paired,
    ranks,
)

Array = NDArray[np.float64]


def answers(means: Array, haystacks: int, rng: np.random.Generator, questions: int = 2) -> Array:
    """Shares of right answers [C, H] that hang together: a haystack is easy or hard for all recipes."""
    hard = rng.normal(0, 0.15, haystacks)
    rates = np.clip(means[:, None] + hard, 0, 1)
    return rng.binomial(questions, rates) / questions


def all_pairs(count: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    one, other = np.triu_indices(count, 1)
    return one, other


def test_of_one_stratum_the_test_is_students_paired_one():
    rng = np.random.default_rng(0)
    scores = rng.normal(0, 1, (4, 30)) + np.array([0, 0.2, 0.9, 2])[:, None]
    p = paired([(scores, np.ones(30))], *all_pairs(4))
    pairs = combinations(range(4), 2)
    assert p == pytest.approx(
        [max(stats.ttest_rel(scores[a], scores[b]).pvalue, 2.0**-29) for a, b in pairs]
    )


def test_of_two_strata_differences_are_of_the_means_of_strata():
    """By Welch's test: the mean of one stratum's differences plus the other's is zero."""
    rng = np.random.default_rng(1)
    one, other = rng.normal(0.2, 1, (2, 12)), rng.normal(0, 3, (2, 20))
    (p,) = paired([(one, np.full(12, 3.0)), (other, np.ones(20))], *all_pairs(2))
    a, b = one[0] - one[1], other[0] - other[1]
    assert p == pytest.approx(stats.ttest_ind(a, -b, equal_var=False)[1])


def test_few_haystacks_that_differ_show_little():
    """Five of forty, all in one direction: as in the sign test, 2 / 2^5, however small Student's is."""
    scores = np.zeros((2, 40))
    scores[1, :5] = 1
    (p,) = paired([(scores, np.ones(40))], *all_pairs(2))
    assert p == stats.binomtest(5, 5).pvalue > stats.ttest_rel(scores[0], scores[1])[1]
    (bare,) = paired([(scores, np.ones(40))], *all_pairs(2), counted=False)
    assert bare == pytest.approx(stats.ttest_rel(scores[0], scores[1])[1])
    for alike in (np.zeros((2, 40)), np.ones((2, 1))):
        (p,) = paired([(alike, np.ones(alike.shape[1]))], *all_pairs(2))
        assert p == 1


def slow_holm(p: list[float], alpha: float) -> list[bool]:
    """Step by step, as the paper says it."""
    rejected, left = [False] * len(p), sorted(range(len(p)), key=lambda i: p[i])
    while left and p[left[0]] <= alpha / len(left):
        rejected[left.pop(0)] = True
    return rejected


@pytest.mark.parametrize("recipes", [2, 3, 24, 40])
def test_fewer_haystacks_than_the_least_tell_nobody_apart(recipes: int):
    """The clearest scores there are: one recipe right everywhere, the others nowhere."""
    least = least_haystacks(recipes)
    for haystacks, told in ((least - 1, False), (least, True)):
        scores = np.zeros((recipes, haystacks))
        scores[0] = 1
        assert ranks([(scores, np.ones(haystacks))]).above.any() == told


@given(st.lists(st.sampled_from([0, 0.001, 0.01, 0.0125, 0.02, 0.025, 0.05, 0.3, 1]), max_size=9))
@settings(deadline=None)
def test_holm(p: list[float]):
    assert holm(np.array(p), 0.05).tolist() == slow_holm(p, 0.05)


@pytest.mark.parametrize("haystacks", [16, 64])
@pytest.mark.parametrize("mean", [0.05, 0.5, 0.9])
def test_recipes_that_are_alike_are_seldom_told_apart(mean: float, haystacks: int):
    """A/A: of 400 studies of ten recipes alike, at most 5 % say a difference (the bound: 3 standard errors)."""
    rng = np.random.default_rng(int(100 * mean) + haystacks)
    wrong = 0
    for _ in range(400):
        strata = [
            (answers(np.full(10, mean), haystacks, rng, questions), np.ones(haystacks))
            for questions in (1, 4)
        ]
        wrong += ranks(strata).above.any()
    assert wrong / 400 <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 400)


def test_families_that_are_alike_are_seldom_told_apart():
    """Also where a family has many members, whose best would be flattered by its own haystacks."""
    rng = np.random.default_rng(7)
    families = ["many"] * 20 + ["few"] * 2 + ["one", "two"]
    wrong, flattered = 0, 0.0
    for _ in range(400):
        strata = [(answers(np.full(24, 0.5), 24, rng), np.ones(24))]
        names, others = best_of_family(strata, families)
        found = ranks(others)
        wrong += found.above.any()
        flattered += found.scores[names.index("many")] - 0.5
    assert wrong / 400 <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 400)
    assert abs(flattered / 400) < 0.01


def test_a_true_order_is_seen_and_never_turned_round():
    """Steps of a fifth, 64 haystacks: each is in its place; the truth lies in the intervals of ranks."""
    rng = np.random.default_rng(3)
    truth = np.array([0.9, 0.7, 0.5, 0.5, 0.3, 0.1])
    first, last = np.array([1, 2, 3, 3, 5, 6]), np.array([1, 2, 4, 4, 5, 6])
    held, exact = 0, 0
    for _ in range(200):
        found = ranks([(answers(truth, 64, rng, 4), np.full(64, 4.0))])
        inside = (found.first <= last) & (found.last >= first)
        held += inside.all()
        exact += (found.first == first).all() and (found.last == last).all()
    assert held >= 190
    assert exact >= 150
    assert found.order[:2] == [0, 1]


def test_the_best_of_a_family_is_what_scores_it():
    rng = np.random.default_rng(5)
    means = np.array([0.1, 0.9, 0.5, 0.4])
    strata = [(answers(means, 40, rng, 4), np.ones(40))]
    names, others = best_of_family(strata, ["a", "a", "b", "b"])
    found = ranks(others)
    assert names == ["a", "b"]
    assert found.scores == pytest.approx([0.9, 0.5], abs=0.1)
    assert found.above.tolist() == [[False, True], [False, False]]
    alone, one = best_of_family([(np.array([[1.0], [0.0]]), np.ones(1))], ["a", "a"])
    assert alone == ["a"] and one[0][0].tolist() == [[0.5]]


def test_ranks_in_words():
    scores = np.array([np.r_[np.ones(20), 0], np.r_[np.ones(20), 0], np.zeros(21)])
    found = ranks([(scores, np.ones(21))])
    assert [found.words(place) for place in range(3)] == ["1 to 2", "1 to 2", "3"]


def slow_front(cost: list[float], gain: list[float]) -> set[tuple[float, float]]:
    points = set(zip(cost, gain, strict=True))
    return {
        (c, g) for c, g in points if not any(a <= c and b >= g and (a, b) != (c, g) for a, b in points)
    }  # fmt: skip


@given(st.lists(st.tuples(st.sampled_from([0.0, 1, 2, 5]), st.sampled_from([0.0, 0.5, 0.7, 1])), max_size=12))  # fmt: skip
@settings(deadline=None)
def test_no_other_point_is_as_cheap_and_better_than_one_of_the_front(points: list):
    cost, gain = [c for c, _ in points], [g for _, g in points]
    places = front(np.array(cost), np.array(gain))
    assert {points[p] for p in places} == slow_front(cost, gain)
    assert len(places) == len({points[p] for p in places})
    assert cost == [*cost] and [cost[p] for p in places] == sorted(cost[p] for p in places)


def test_what_was_not_judged_is_on_no_front():
    assert front(np.array([1, np.nan, 0]), np.array([0.5, 0.9, np.nan])) == [0]
