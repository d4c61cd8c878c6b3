"""Paired tests at a margin: by the likelihood maximised on a grid, and by simulation at the margin's edge."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats
from scipy.special import betaincinv, ndtr

from topkit.experiments.study.noninferiority import Paired

Array = NDArray[np.float64]


def slow_z(n: float, lost: float, won: float, margin: float) -> float:
    """Tango's statistic, the rate of gains by the likelihood on a fine grid."""
    gains = np.linspace(0, (1 - margin) / 2, 400_001)[1:-1]
    same = n - lost - won
    likelihood = (
        lost * np.log(gains + margin) + won * np.log(gains) + same * np.log(1 - 2 * gains - margin)
    )
    best = gains[likelihood.argmax()]
    error = math.sqrt((2 * best + margin - margin**2) / n)
    return ((won - lost) / n + margin) / error


@pytest.mark.parametrize("counts", [(200, 6, 4), (40, 0, 1), (96, 3, 0), (31, 8, 9), (50, 0, 0)])
@pytest.mark.parametrize("margin", [0.01, 0.05, 0.3])
def test_the_score_is_tangos(counts: tuple[int, int, int], margin: float):
    n, lost, won = counts
    made = Paired(n, n, lost, won, lost + won)  # each by itself
    assert made.z(margin) == pytest.approx(slow_z(n, lost, won, margin), rel=1e-3)
    assert made.holds(margin) == pytest.approx(stats.t.sf(made.z(margin), n - 1))
    assert made.holds(margin) + made.fails(margin) == pytest.approx(1)


def test_questions_that_are_lost_together_count_as_one():
    trials = np.full(40, 4.0)
    base, alone, together = np.ones((3, 40))
    alone[:8] = 0.75
    together[:2] = 0.0
    apart, whole = Paired.of(alone, base, trials), Paired.of(together, base, trials)
    assert apart.mean == whole.mean == -8 / 160
    assert apart.size == pytest.approx((8 + 1) / (8 + 1 / 4))
    assert whole.size == pytest.approx((2 * 16 + 1) / (8 + 1 / 4)) == 4
    assert whole.at_least(0.05) < apart.at_least(0.05) < -0.05


def test_where_nothing_differs_a_haystack_counts_as_one():
    alike = Paired.of(np.ones(100), np.ones(100), np.full(100, 4.0))
    assert (alike.size, alike.lost, alike.won, alike.mean) == (4, 0, 0, 0)
    # A recipe that loses a whole haystack in fifty would show none of them in one of eight studies.
    assert 0.98**100 > alike.holds(0.02) > 0.05
    assert alike.holds(0.05) < 0.02


def test_one_haystack_shows_nothing():
    one = Paired.of(np.zeros(1), np.ones(1), np.ones(1))
    assert one.holds(0.02) == one.fails(0.02) == 1
    assert (one.at_least(0.05), one.at_most(0.05)) == pytest.approx((-1, 1))
    assert one.to_decide(0.02, 0.05) is None


rates = st.lists(st.sampled_from([0, 0.25, 0.5, 0.75, 1.0]), min_size=2, max_size=12)


@given(rates, rates, st.sampled_from([0.002, 0.05]))
@settings(deadline=None, max_examples=40)
def test_ends_are_where_the_tests_turn(one: list[float], other: list[float], alpha: float):
    size = min(len(one), len(other))
    made = Paired.of(np.array(one[:size]), np.array(other[:size]), np.full(size, 4.0))
    low, high = made.at_least(alpha), made.at_most(alpha)
    assert -1 <= low <= made.mean + 1e-9 and made.mean - 1e-9 <= high <= 1
    for margin in (0.02, 0.3, 0.9):
        if abs(low + margin) > 1e-6:
            assert (made.holds(margin) <= alpha) == (low > -margin)
        if abs(high + margin) > 1e-6:
            assert (made.fails(margin) <= alpha) == (high < -margin)


def test_as_many_haystacks_as_it_says_decide_in_four_of_five_studies():
    """Drawn anew from the haystacks themselves, whose mean is the truth then."""
    rng = np.random.default_rng(0)
    trials = np.full(60, 4.0)
    base = np.ones(60)
    recipe = np.repeat([1.0, 0.75], [57, 3])
    n = Paired.of(recipe, base, trials).to_decide(0.05, 0.01)
    assert n is not None and 60 < n < 600
    shown = 0
    for _ in range(200):
        drawn = rng.integers(60, size=n)
        shown += Paired.of(recipe[drawn], base[drawn], np.full(n, 4.0)).holds(0.05) <= 0.01
    assert 0.7 < shown / 200 < 0.95


def test_what_stands_at_the_margin_is_decided_by_no_number():
    recipe = np.repeat([1.0, 0.75], [16, 4])
    at_it = Paired.of(recipe, np.ones(20), np.full(20, 4.0))
    assert at_it.mean == -0.05 and at_it.to_decide(0.05, 0.05) is None
    near, far = (at_it.to_decide(margin, 0.05) for margin in (0.06, 0.08))
    assert near is not None and far is not None and near > far > 20


def pair(
    kind: float, base: float, margin: float, haystacks: int, rng: np.random.Generator
) -> tuple[Array, Array]:
    """Two recipes whose true accuracies are the margin apart: [H] each.

    kind: how questions of a haystack hang together, 0 to 1, where the haystack decides; what is hard for one is
    hard for the other.
    """
    truth = np.array([base, base - margin])[:, None]
    hard = ndtr(np.sqrt(0.5) * (rng.normal(size=haystacks) + rng.normal(size=(2, haystacks))))
    if kind == 0:
        chance = np.broadcast_to(truth, hard.shape)
    elif kind == 1:
        chance = (hard < truth).astype(float)
    else:
        total = (1 - kind) / kind
        chance = betaincinv(truth * total, (1 - truth) * total, 1 - hard)
    each = np.sqrt(0.5) * (rng.normal(size=(1, haystacks, 4)) + rng.normal(size=(2, haystacks, 4)))
    right = (ndtr(each) < chance[:, :, None]).mean(-1)
    return right[1], right[0]


@pytest.mark.parametrize("kind", [0, 0.3, 1])
@pytest.mark.parametrize("base", [0.98, 0.8])
def test_what_loses_the_margin_is_seldom_said_to_hold(kind: float, base: float):
    """At the edge, of 300 studies at most 5 % (the bound: 2.5 standard errors)."""
    rng = np.random.default_rng(int(10 * kind + 100 * base))
    for margin, haystacks in ((0.02, 40), (0.05, 64)):
        said = [
            Paired.of(*pair(kind, base, margin, haystacks, rng), np.full(haystacks, 4.0))
            for _ in range(300)
        ]
        assert np.mean([one.holds(margin) <= 0.05 for one in said]) <= 0.08
        assert np.mean([one.fails(margin) <= 0.05 for one in said]) <= 0.09
