"""Whether orders carry over: known orders come out, intervals hold the truth, sentences follow the numbers."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from topkit.experiments.runs.cells import Cell
from topkit.experiments.study.carry_over import Agreement, agreement
from topkit.experiments.study.curve import Curve
from topkit.experiments.study.models_compared import comparisons, sentences
from topkit.experiments.study.pictures import Pictures
from topkit.experiments.study.sheet import Sheet
from topkit.experiments.study.two_models import compared_shown, rows_of
from topkit.grammar import short
from topkit.indexers.budget import parse_budgets
from topkit.indexers.spec import parse

Array = NDArray[np.float64]
FAMILIES = [name for name in "abcdefgh" for _ in range(3)]


def strata(means: Array, haystacks: int, rng: np.random.Generator, spread: float = 0.15) -> list:
    """Scores about known means on two settings, of one and of four questions a haystack."""
    made = []
    for shift, questions in ((0.0, 1), (-0.1, 4)):
        noise = rng.normal(0, spread, (len(means), haystacks))
        made.append((means[:, None] + shift + noise, np.full(haystacks, float(questions))))
    return made


def slow_spearman(a: list[float], b: list[float]) -> float:
    """By the definition: Pearson's of mid-ranks, written out."""

    def ranks(x: list[float]) -> list[float]:
        return [sum(y < v for y in x) + (sum(y == v for y in x) + 1) / 2 for v in x]

    one, two = ranks(a), ranks(b)
    ma, mb = sum(one) / len(one), sum(two) / len(two)
    top = sum((x - ma) * (y - mb) for x, y in zip(one, two, strict=True))
    return top / (sum((x - ma) ** 2 for x in one) * sum((y - mb) ** 2 for y in two)) ** 0.5


def slow_kendall(a: list[float], b: list[float]) -> float:
    """tau-b over all pairs."""
    alike = unlike = tied_a = tied_b = 0
    for i, j in combinations(range(len(a)), 2):
        x, y = a[i] - a[j], b[i] - b[j]
        alike += x * y > 0
        unlike += x * y < 0
        tied_a += x == 0
        tied_b += y == 0
    pairs = len(a) * (len(a) - 1) / 2
    return (alike - unlike) / ((pairs - tied_a) * (pairs - tied_b)) ** 0.5


def test_estimates_are_those_of_the_definitions():
    rng = np.random.default_rng(3)
    one, other = (strata(rng.random(24), 9, rng) for _ in range(2))
    found = agreement(one, other, FAMILIES, draws=20)
    each = []
    for side in (one, other):
        settings = [
            [sum(r * n for r, n in zip(row, q, strict=True)) / sum(q) for row in x] for x, q in side
        ]
        each.append([sum(s) / len(s) for s in zip(*settings, strict=True)])
    families = [[sum(m[3 * f : 3 * f + 3]) / 3 for f in range(8)] for m in each]
    assert float(found.spearman.value) == pytest.approx(slow_spearman(*families))
    assert float(found.kendall.value) == pytest.approx(slow_kendall(*families))
    assert float(found.of_indexers.value) == pytest.approx(slow_spearman(*each))
    gaps = [[x - sum(m) / len(m) for x in m] for m in each]
    assert found.move.value == pytest.approx(np.subtract(gaps[1], gaps[0]), abs=1e-8)
    assert (found.families, found.indexers) == (8, 24)


def test_one_order_and_its_reverse():
    rng = np.random.default_rng(0)
    means = np.linspace(0, 2, 24)
    one = strata(means, 40, rng)
    same = agreement(one, strata(means * 3 - 1, 40, rng), FAMILIES)
    assert float(same.spearman.value) == float(same.kendall.value) == 1
    assert float(same.spearman.low) > 0.5
    assert min(same.halves) > 0.95
    turned = agreement(one, strata(-means, 40, rng), FAMILIES)
    assert float(turned.spearman.value) == -1
    assert float(turned.spearman.high) < -0.5


@pytest.mark.slow
def test_intervals_hold_the_correlation_that_families_were_drawn_with():
    """Families drawn from a population whose Spearman correlation is known: covered in at least 9 of 10."""
    rng = np.random.default_rng(1)
    pearson = 0.6
    spearman = 6 / np.pi * np.arcsin(pearson / 2)  # of a bivariate normal
    covered, widths = 0, []
    for seed in range(60):
        a, b = rng.multivariate_normal([0, 0], [[1, pearson], [pearson, 1]], 8).T
        means = [np.repeat(x, 3) + rng.normal(0, 0.1, 24) for x in (a, b)]
        one, other = (strata(m, 24, rng) for m in means)
        found = agreement(one, other, FAMILIES, draws=200, seed=seed)
        _, low, high = found.spearman
        covered += low <= spearman <= high
        widths.append(high - low)
    assert covered >= 54
    assert np.mean(widths) < 2  # and says something


def test_what_moves_is_named_and_what_does_not_is_not():
    """Coverage of moves over draws, and one indexer that falls by a half."""
    rng = np.random.default_rng(2)
    means = np.linspace(0, 1, 24)
    falls = means.copy()
    falls[5] -= 0.5
    base = np.array([1.0])
    inside = []
    for seed in range(16):
        one, other = (strata(m, 20, rng) for m in (means, falls))
        exact = strata(base, 20, rng), strata(base, 20, rng)
        found = agreement(one, other, FAMILIES, exact, draws=200, seed=seed)
        truth = falls - means
        inside.append((found.move.low <= truth) & (truth <= found.move.high))
        assert found.move.high[5] < 0
    assert np.mean(inside) > 0.93


REAL = (
    "sign()",
    "quantized(dtype='int4')",
    "quest(page_size=4)",
    "streaming_llm()",
    "top_p(sign(), mass=0.9)",
    "sampled(sign())",
    "faiss_ivf(nlist=16)",
)


def curve(model: str, means: dict[str, float], task: str = "niah-single", seed: int = 0) -> Curve:
    """A curve whose cells have known means at k = 16 and 64, where exact Top-k scores .6 and 1."""
    rng = np.random.default_rng(seed)
    specs = [("exact()", 16, 0.6), ("exact()", 64, 1.0)]
    specs += [(spec, k, mean) for spec, mean in means.items() for k in (16, 64)]
    cells = (Cell(), *(Cell(parse(spec), parse_budgets(k)[0]) for spec, k, _ in specs))
    rates = np.array([1.0, *(mean for _, _, mean in specs)])[:, None] + rng.normal(0, 0.02, (len(cells), 12))  # fmt: skip
    ones = np.ones(12)
    losses = {"nll": 1 - rates, "kl": 1 - rates}
    return Curve(
        task, 1024, "question", "exact_match", cells, tuple(range(12)), ones, rates, rates, losses, {}, 4.0, {}, model=model
    )  # fmt: skip


def spread(order: tuple[str, ...]) -> dict[str, float]:
    return {spec: 0.05 + 0.08 * place for place, spec in enumerate(order)}


def test_models_are_compared_on_what_both_have_where_exact_top_k_tells(tmp_path: Path):
    one, other = curve("one", spread(REAL)), curve("two", spread(REAL))
    (found,) = comparisons([one, other])
    assert found.shared and [str(k) for k in found.budgets[0]] == ["16"]
    assert len(found.indexers) == 7 and len(set(found.families)) == 6
    lines = " ".join(sentences(found))
    assert "from one to two? It does over 6 families" in lines
    assert "No indexer is shown to stand otherwise" in lines
    (apart,) = comparisons([one, replace(other, task="kv-recall")])
    assert not apart.shared and "each on settings of its own" in " ".join(sentences(apart))
    assert comparisons([one]) == comparisons([one, replace(other, cells=other.cells[:4])]) == []
    rows, ends = rows_of(found)
    assert [row["name"] for row in rows] == [short(recipe) for recipe in found.indexers]
    assert [row["first"] for row in rows] == pytest.approx(list(found.found.first), abs=1e-4)
    assert ends[0]["first"] == ends[0]["second"] < ends[1]["first"] == ends[1]["second"]
    sheet = Sheet(tmp_path, Pictures(None))
    ((heading, shown),) = compared_shown([found], sheet)
    assert "much the same order with one and two (Spearman 1.00 over 6 families)" in heading
    assert shown.name in sheet.figures and (tmp_path / f"{shown.name}.png").exists()


def test_a_reversed_order_is_said_with_what_moves():
    pair = [curve("one", spread(REAL)), curve("two", spread(REAL[::-1]), seed=1)]
    (found,) = comparisons(pair)
    lines = list(sentences(found))
    assert "reversed" in lines[0]
    assert "stand otherwise with two than with one" in lines[2]
    assert "faiss_ivf" in lines[2] and lines[2].count("[") <= 6


def test_what_fails_with_both_models_is_not_said_to_move():
    """Exact Top-k scores less with the second: that changes the gap of what scores nothing, and says nothing of it."""
    pair = list[Curve]()
    for model, exact in (("one", 0.6), ("two", 0.35)):
        made = curve(model, spread(REAL))
        rates = made.rates.copy()
        rates[1] += exact - 0.6
        rates[3:5] = 0  # the first indexer at both k
        pair.append(replace(made, rates=rates))
    (found,) = comparisons(pair)
    told = list(sentences(found))[2]
    assert f"{len(REAL) - 1} of {len(REAL)} indexers stand otherwise" in told
    assert " sign() " not in told


def test_running_text_is_compared_by_its_nll():
    pair = [
        curve("one", spread(REAL), "books"),
        curve("two", spread(REAL), "books", 1),
        curve("one", spread(REAL)),
        curve("two", spread(REAL), seed=1),
    ]
    assert [one.goal for one in comparisons(pair)] == ["accuracy", "minus NLL"]


def test_an_agreement_is_the_same_again():
    rng = np.random.default_rng(4)
    one, other = (strata(rng.random(24), 9, rng) for _ in range(2))
    found: list[Agreement] = [agreement(one, other, FAMILIES, draws=50) for _ in range(2)]
    assert found[0].spearman == found[1].spearman
    assert found[0].halves == found[1].halves
