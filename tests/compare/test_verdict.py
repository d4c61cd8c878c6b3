"""Verdicts by simulation: how often they are wrong, how many sequences they take, one that is never safe."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from topkit.errors import InputError
from topkit.experiments.compare.interval import FEWEST, Mean, most_of
from topkit.experiments.compare.margins import parse_margins
from topkit.experiments.compare.sentence import sentence
from topkit.experiments.compare.verdict import Loss, verdict, word_of

MARGINS = {"recall": 0.01, "mass": 0.002}
Draw = Callable[[np.random.Generator, int], np.ndarray]
# Losses of mean 1, from even to rare.
DRAWS: dict[str, Draw] = {
    "even": lambda g, n: g.gamma(25, 1 / 25, n),
    "exponential": lambda g, n: g.exponential(1, n),
    "rare": lambda g, n: (g.random(n) < 0.1) * 10 * g.gamma(4, 0.25, n),
}


def shares(draw: str, n: int, times: float, studies: int = 200) -> dict[str, float]:
    """How often each word comes where the mean losses are so many times their margins."""
    g, words = np.random.default_rng([n, studies]), list[str]()
    for _ in range(studies):
        drawn = {name: DRAWS[draw](g, n) * times * m for name, m in MARGINS.items()}
        losses = {name: Loss(Mean.of(x), MARGINS[name]) for name, x in drawn.items()}
        words.append(word_of(losses))
    return {word: words.count(word) / studies for word in ("safe", "unsafe", "undecided")}


@pytest.mark.parametrize("draw", DRAWS)
@pytest.mark.parametrize(("n", "times"), [(1, 0.25), (2, 1), (3, 1), (8, 1), (32, 1)])
def test_alike_is_unsafe_in_five_per_cent_at_most(draw: str, n: int, times: float) -> None:
    """At losses that are the margins, which is the worst that is alike; of one sequence, a quarter of them."""
    assert shares(draw, n, times)["unsafe"] <= 0.05


@pytest.mark.parametrize("draw", ["even", "exponential"])
@pytest.mark.parametrize("n", [5, 8, 32])
def test_a_loss_at_a_margin_is_safe_in_five_per_cent_at_most(draw: str, n: int) -> None:
    assert shares(draw, n, 1.0)["safe"] <= 0.05


@pytest.mark.parametrize(("n", "times"), [(1, 14), (2, 7), (3, 4.5), (4, 4), (8, 2.2)])
def test_what_loses_some_margins_is_unsafe(n: int, times: float) -> None:
    assert shares("even", n, times)["unsafe"] >= 0.95


@pytest.mark.parametrize(("n", "times"), [(5, 0.2), (8, 0.3), (16, 0.5), (64, 0.7)])
def test_what_loses_part_of_a_margin_is_safe(n: int, times: float) -> None:
    assert shares("even", n, times)["safe"] >= 0.95


@settings(deadline=None, max_examples=50)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=FEWEST - 1))
def test_few_sequences_are_never_safe(losses: list[float]) -> None:
    said = verdict({"recall": Loss(Mean.of(np.array(losses)), 0.01)})
    assert said.word != "safe"


def test_one_sequence_is_unsafe_by_ten_margins_and_else_undecided() -> None:
    def word(recall: float) -> str:
        lost = {"recall": recall, "mass": 0.0}
        return verdict({n: Loss(Mean.of(np.array([x])), MARGINS[n]) for n, x in lost.items()}).word

    assert [word(x) for x in (0.0, 0.0999, 0.1001, 1.0)] == [
        "undecided",
        "undecided",
        "unsafe",
        "unsafe",
    ]


@pytest.mark.parametrize("draw", ["even", "exponential"])
@pytest.mark.parametrize("n", [2, 8])
def test_what_the_baseline_does_by_itself_is_not_unsafe(draw: str, n: int) -> None:
    """From run to run it loses five margins; so does the candidate, which is another run of it."""
    g, unsafe = np.random.default_rng(n), 0
    for _ in range(150):
        x, again = DRAWS[draw](g, n) * 0.05, DRAWS[draw](g, n) * 0.05
        unsafe += word_of({"recall": Loss(Mean.of(x), 0.01, Mean.of(again))}) == "unsafe"
    assert unsafe <= 7


def test_a_rerun_makes_nothing_safe() -> None:
    lost = np.full(16, 0.02)
    alone = verdict({"recall": Loss(Mean.of(lost), 0.01)})
    beside = {"recall": Loss(Mean.of(lost), 0.01, Mean.of(lost))}
    assert alone.word == "unsafe" and verdict(beside).word == "undecided"
    assert verdict(beside).sequences is None
    assert "no number of sequences would decide" in sentence(verdict(beside), beside)


@settings(deadline=None, max_examples=25)
@given(st.lists(st.floats(0.0, 0.08), min_size=1, max_size=6), st.sampled_from([0.005, 0.02]))
def test_the_number_that_would_decide_is_the_least_that_does(
    losses: list[float], margin: float
) -> None:
    one = {"recall": Loss(Mean.of(np.array(losses)), margin)}
    said = verdict(one)
    if said.word != "undecided" or said.sequences is None:
        return
    at, before = (
        verdict({"recall": one["recall"].over(n)}).word
        for n in (said.sequences, said.sequences - 1)
    )
    assert at != "undecided" and before == "undecided"


def test_sequences_that_were_there_say_the_same_as_those_imagined() -> None:
    few = Mean.of(np.array([0.01, 0.03, 0.02, 0.04, 0.02, 0.03]))
    many = Mean.of(np.array(few.losses * 4))
    for limit in (0.005, 0.015, 0.02):
        assert few.over(24).exceeds(limit, 0.05) == many.exceeds(limit, 0.05)
    assert few.over(24).high(0.05) == pytest.approx(many.high(0.05), rel=0.03)


def test_low_is_where_more_is_no_longer_shown() -> None:
    mean = Mean.of(np.array([0.01, 0.03, 0.02, 0.04]))
    low = mean.low(0.05)
    assert mean.exceeds(low * 0.999, 0.05) and not mean.exceeds(low * 1.001, 0.05)
    assert Mean.of(np.zeros(3)).low(0.05) == 0
    # By hand: the product of four ratios reaches 20.
    assert low == pytest.approx((0.01 * 0.03 * 0.02 * 0.04 / 20) ** 0.25)


def test_the_share_of_sequences_that_lose_more() -> None:
    assert most_of(0, 5) == pytest.approx(1 - 0.05 ** (1 / 5))
    assert most_of(3, 3) == 1 and 0.2 < most_of(1, 16) < 0.3


def test_margins() -> None:
    assert parse_margins("mass=0.002, recall=0.01") == {"recall": 0.01, "mass": 0.002}
    assert parse_margins({"mass": 0.5}) == {"mass": 0.5}
    for bad in ("", "recall", "recall=0", "recall=1", "recall=nan", "recall=.1,recall=.2", "x=.1"):
        with pytest.raises(InputError, match=r"margin must be recall=0\.01,mass=0\.002"):
            parse_margins(bad)
    assert not math.isnan(parse_margins("recall=1e-3")["recall"])
