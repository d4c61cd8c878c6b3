"""Advice: the cheapest recipe shown to hold on all tasks, seldom a false one, and what would decide."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import topkit
from topkit.errors import GateFailed, InputError, Undecided
from topkit.experiments.runs.cells import Cell
from topkit.experiments.study.advice import advice_of, advise
from topkit.experiments.study.candidates import FAILS, HOLDS, UNDECIDED
from topkit.experiments.study.curve import Curve
from topkit.indexers.budget import Budget
from topkit.indexers.spec import parse

Array = NDArray[np.float64]
ROOT = Path(__file__).parents[2]
K = Budget(16.0)
FIDELITY = ("recall", "mass", "kept", "bytes_read", "index_bytes")


def curve(
    rates: Mapping[str, Array],
    cost: Mapping[str, tuple[float, float]] = {},
    task: str = "niah-multikey",
    budgets: Mapping[str, Budget] = {},
) -> Curve:
    """A curve of recipes by their specs, of full attention by "dense": four questions a haystack."""
    specs = list(rates)
    cells = tuple(
        Cell() if spec == "dense" else Cell(parse(spec), budgets.get(spec, K)) for spec in specs
    )
    haystacks = len(rates[specs[0]])
    wide = np.full((len(cells), haystacks), np.nan)
    read, index = np.transpose([cost.get(spec, (1000.0, 1000.0)) for spec in specs])
    fidelity = {name: wide for name in FIDELITY}
    fidelity["bytes_read"] = np.repeat(read[:, None], haystacks, 1)
    fidelity["index_bytes"] = np.repeat(index[:, None], haystacks, 1)
    return Curve(
        *(task, 4096, "question", "score", cells, tuple(range(haystacks))),
        np.full(haystacks, 4.0),
        np.stack([rates[spec] for spec in specs]),
        wide,
        {"nll": wide, "kl": wide},
        fidelity,
        6.0,
        {},
    )


def losing(haystacks: int, count: int, first: int = 0) -> Array:
    """One question of four lost on some haystacks."""
    place = np.arange(haystacks)
    return np.where((place >= first) & (place < first + count), 0.75, 1.0)


RIGHT = np.ones(200)
RATES = {
    "dense": RIGHT,
    "exact": losing(200, 4),
    "sign": losing(200, 150),
    "quantized:dtype=int2": losing(200, 14),
    "quantized:dtype=int4": losing(200, 4, first=2),
    "quantized:dtype=int8": losing(200, 3),
    "top_p(quantized(dtype='int4'))": losing(200, 4, first=3),
}
COST = {
    "dense": (np.nan, np.nan),
    "exact": (9000.0, 0.0),
    "sign": (10.0, 10.0),
    "quantized:dtype=int2": (20.0, 20.0),
    "quantized:dtype=int4": (40.0, 41.0),
    "quantized:dtype=int8": (80.0, 80.0),
    "top_p(quantized(dtype='int4'))": (40.0, 40.0),
}


def test_the_cheapest_that_holds_is_chosen_and_its_index_breaks_ties():
    advice = advice_of([curve(RATES, COST)], 0.02)
    words = {str(one.cell.indexer): one.word for one in advice.recipes}
    assert list(words.values()) == [FAILS, UNDECIDED, HOLDS, HOLDS, HOLDS]
    assert advice.choice is not None and "top_p" in repr(advice.choice.cell.indexer)
    assert (advice.choice.bytes_read, advice.choice.exact_bytes) == (40, 9000)
    assert [one.cost for one in advice.recipes] == sorted(one.cost for one in advice.recipes)
    assert "is the cheapest of 3 shown to lose less than 0.02" in advice.sentence
    assert "cheaper and undecided: quantized(dtype=int2) at k = 16 (about" in advice.sentence
    advice.require()
    assert advice_of([curve(RATES, COST)], 0.02, "dense").choice is not None


def test_verdicts_are_what_the_intervals_say():
    for margin in (0.005, 0.02, 0.1, 0.5):
        advice = advice_of([curve(RATES, COST)], margin)
        for one in advice.recipes:
            (on,) = one.tasks
            assert on.low <= on.difference <= on.high
            assert (one.word == HOLDS) == (on.low > -margin)
            assert (one.word == FAILS) == (on.high < -margin)
            assert (one.to_decide is not None) <= (one.word == UNDECIDED)


def test_it_must_hold_on_every_task():
    easy = curve(RATES, COST, "kv-recall")
    hard = curve({**RATES, "top_p(quantized(dtype='int4'))": losing(200, 120)}, COST)
    advice = advice_of([easy, hard], 0.02)
    assert advice.choice is not None and "int4" in repr(advice.choice.cell)
    assert "top_p" not in repr(advice.choice.cell)
    (worse,) = [one for one in advice.of(FAILS) if "top_p" in repr(one.cell)]
    assert worse.worst.curve is hard
    # One that a task lacks is left out, with its reason.
    few = curve({n: x for n, x in RATES.items() if "int8" not in n}, COST, "kv-recall")
    advice = advice_of([hard, few], 0.02)
    assert any("was not run on kv-recall" in line for line in advice.left_out)
    assert "int8" not in "".join(repr(one.cell) for one in advice.recipes)


def test_none_that_holds_is_undecided_or_a_failure():
    few = {name: rates[:12] for name, rates in RATES.items()}
    advice = advice_of([curve(few, COST)], 0.02)
    assert advice.choice is None and advice.verdict == UNDECIDED
    with pytest.raises(Undecided, match="haystacks like these would decide"):
        advice.require()
    failing = advice_of([curve({"exact": RIGHT, "sign": losing(200, 190)})], 0.02)
    with pytest.raises(GateFailed, match="every one of 1 recipes"):
        failing.require()


def test_where_nothing_can_be_lost_nothing_is_decided():
    floor = {"exact": np.zeros(64), "sign": np.zeros(64), "random": np.zeros(64)}
    advice = advice_of([curve(floor)], 0.02)
    (one,) = advice.recipes  # random is a control
    assert (one.word, one.to_decide, one.tasks[0].paired) == (UNDECIDED, None, None)
    assert "scores too little to lose anything" in advice.sentence


def test_one_haystack_holds_nothing():
    advice = advice_of([curve({"exact": np.ones(1), "sign": np.ones(1)})], 0.05)
    assert advice.verdict == UNDECIDED
    json.dumps(advice.summary(), allow_nan=False)


def test_what_has_no_accuracy_is_left_out():
    rates = {"exact": RIGHT, "sign": np.where(RATES["sign"] < 1, np.nan, 1.0), "random": RIGHT}
    with pytest.raises(InputError, match="no accuracy on some haystacks"):
        advice_of([curve(rates)], 0.05)
    advice = advice_of([curve({**RATES, "sign": rates["sign"]}, COST)], 0.02)
    assert advice.left_out == (
        "sign() at k = 16: no accuracy on some haystacks of niah-multikey, 4096 tokens",
    )


def test_budgets_are_chosen_and_costs_may_be_unknown():
    rates = {"exact": RIGHT, "sign": RIGHT, "quantized:dtype=int4": RIGHT}
    one = curve(rates, {"sign": (np.nan, np.nan)}, budgets={"quantized:dtype=int4": Budget(8.0)})
    advice = advice_of([one], 0.05)
    assert any("exact Top-k at k = 8 was not run" in line for line in advice.left_out)
    assert "what it reads was not observed" in advice.sentence
    with pytest.raises(InputError, match="no recipe was run at k = 7; there is -k"):
        advice_of([one], 0.05, k=7)
    with pytest.raises(InputError, match="no recipe of this run can be judged"):
        advice_of([curve({"dense": RIGHT, "exact": RIGHT})])


def test_false_advice_is_rare_at_the_margins_edge():
    """Twelve recipes, each of which loses just the margin: of 150 studies one is said to hold in at most 5 %.

    The bound is 2.5 standard errors above. Whatever a haystack makes hard is hard for all.
    """
    rng, studies, false = np.random.default_rng(1), 150, 0
    names = [f"quantized:dtype={d},scale={s}" for d in ("int8", "int4", "int2") for s in ("float", "pow2")]  # fmt: skip
    names += [f"quest:page_size={2**n}" for n in range(1, 7)]
    for _ in range(studies):
        hard = rng.normal(0, 0.05, 64)
        exact = rng.binomial(4, np.clip(0.93 + hard, 0, 1)) / 4
        # What exact Top-k answers, but for a question in twenty; some are won, and as many more lost.
        rates: dict[str, Array] = {"exact": exact}
        for name in names:
            lost = rng.binomial((4 * exact).astype(int), 0.05 / 0.93 + 0.01)
            won = rng.binomial(4 - (4 * exact).astype(int), 0.01 * 0.93 / 0.07)
            rates[name] = exact + (won - lost) / 4
        false += advice_of([curve(rates)], 0.05).choice is not None
    assert false / studies <= 0.095


def test_of_a_run(tmp_path: Path):
    run = ROOT / "results" / "fidelity-vs-accuracy"
    advice = topkit.advise(run, margin=0.05)
    assert advice.choice is not None and "int4" in repr(advice.choice.cell)
    assert {"sign", "quest"} <= {type(one.cell.indexer).__name__ for one in advice.of(FAILS)}
    said = advice.summary()
    assert json.loads(json.dumps(said, allow_nan=False)) == said
    assert said["choice"]["k"] == "16" and said["verdict"] == HOLDS
    assert advise([run], margin=0.05).summary() == said


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"margin": 0}, "margin must lie between 0 and 1"),
        ({"margin": float("nan")}, "margin must lie between 0 and 1"),
        ({"against": "full"}, "against must be dense or exact"),
        ({"model": "llama"}, "no model 'llama' in this study"),
        ({"k": "9"}, "no recipe was run at k = 9"),
    ],
)
def test_bad_input_is_refused(wrong: dict[str, Any], words: str):
    run = ROOT / "results" / ("carry-over" if "model" in wrong else "fidelity-vs-accuracy")
    with pytest.raises(InputError, match=words):
        advise(run, **wrong)


def test_of_several_models_one_is_named():
    run = ROOT / "results" / "carry-over"
    with pytest.raises(InputError, match="name one: reference, smollm2"):
        advise(run)
    named = advise(run, model="smollm2")
    assert {on.curve.model for one in named.recipes for on in one.tasks} == {"smollm2"}
    with pytest.raises(InputError, match="no run to advise on"):
        advise([])
