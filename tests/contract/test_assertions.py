"""assert_selects against a slow verdict, row by row, and its words for every kind of breakage."""

from __future__ import annotations

import math
import re
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from topkit.assertions import selects
from topkit.errors import InputError
from topkit.kernels.select_topk import select_topk
from topkit.testing import assert_selects

INF = math.inf
# Few distinct values, so that most rows tie; invisible slots; an infinite score.
VALUES = [-INF, -INF, -2.0, 0.0, 0.0, 1.0, 1.0, 3.0, 3.5, INF]


def slow_verdict(picked: list[int], row: list[float], k: int, recall: Any, mass: Any) -> bool:
    """Whether one row is as asked, written out."""
    seen = {slot: s for slot, s in enumerate(row) if s > -INF}
    wanted = min(k, len(seen))
    chosen = [slot for slot in picked if slot != -1]
    exactly = recall is None and mass is None
    if len(chosen) > wanted or (exactly and len(chosen) < wanted):
        return False
    if len(set(chosen)) != len(chosen) or not set(chosen) <= set(seen):
        return False
    ours = sorted((seen[slot] for slot in chosen), reverse=True)
    best = sorted(seen.values(), reverse=True)[:wanted]
    if wanted == 0:
        return True
    if exactly:
        return ours == best
    good = recall is None or sum(s >= best[-1] for s in ours) / wanted >= recall
    if mass is not None:
        total = sum(math.exp(s) for s in seen.values())
        good = good and sum(math.exp(s) for s in ours) / total >= mass
    return good


@st.composite
def choices(draw: Any) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Tie-heavy scores, and for each row a best choice that may have been spoilt."""
    lead = draw(st.sampled_from([(), (3,), (2, 1), (2, 2, 2)]))
    length, rng = draw(st.integers(1, 9)), np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    k = draw(st.integers(1, length + 2))
    width = draw(st.integers(k, k + 2))
    scores = rng.choice(VALUES, (*lead, length))
    indices = np.full((*lead, width), -1)
    for place in np.ndindex(*lead):
        shuffled = rng.permutation(length)
        order = sorted(shuffled[scores[place][shuffled] > -INF], key=lambda s: -scores[place][s])
        indices[place][: min(k, len(order))] = order[:k]
        rng.shuffle(indices[place])
        if rng.random() < 0.25:
            indices[place][rng.integers(width)] = rng.integers(-3, length + 2)
    return torch.from_numpy(scores).float(), torch.from_numpy(indices), k


@settings(max_examples=400, deadline=None)
@given(choices(), st.sampled_from([(None, None), (0.5, None), (0.99, None), (None, 0.3), (1, 0.2)]))
def test_it_raises_when_a_row_is_not_as_asked(case: Any, least: Any) -> None:
    scores, indices, k = case
    recall, mass = least
    if mass is not None:  # weights have no meaning beside an infinite score
        scores = scores.masked_fill(scores == INF, 3.25)
    rows = zip(
        indices.reshape(-1, indices.shape[-1]).tolist(),
        scores.reshape(-1, scores.shape[-1]).tolist(),
        strict=True,
    )
    right = all(slow_verdict(*row, k, recall, mass) for row in rows)
    for i, s in ((indices, scores), (indices.int().numpy(), scores.numpy())):
        with nullcontext() if right else pytest.raises(AssertionError):
            assert_selects(i, s, k=k, recall=recall, mass=mass)


@settings(max_examples=100, deadline=None)
@given(choices(), st.sampled_from([torch.float32, torch.float64, torch.float16, torch.bfloat16]))
def test_exact_kernels_pass(case: Any, dtype: torch.dtype) -> None:
    scores, _, k = case
    scores = scores.to(dtype)
    assert_selects(select_topk(scores, k), scores, k=k)
    visible = scores.masked_fill(scores == -INF, -5)
    width = min(k, scores.shape[-1])
    assert_selects(visible.topk(width).indices, visible)
    order = np.argsort(visible.double().numpy(), axis=-1)[..., ::-1]
    assert_selects(order[..., :width], visible, recall=1.0)


def facts_of(*args: Any, **kwargs: Any) -> tuple[str, dict[str, str]]:
    """The message's first line, and its facts by name."""
    with pytest.raises(AssertionError) as raised:
        assert_selects(*args, **kwargs)
    head, *lines = str(raised.value).splitlines()
    facts = [re.fullmatch(r"  ([\w ]+|NaN scores): (.*)", line) for line in lines]
    return head, {fact[1]: fact[2] for fact in facts if fact}


#          slot  0    1    2    3    4    5    6     7
ROW = [4.0, 9.0, 2.0, 4.0, 7.0, 4.0, 1.5, -INF]
BREAKAGES = {
    "too low a score": ([1, 4, 0, 2], {"missed": "none", "too low": "1: 2 (2)", "recall": "0.75"}),
    "the best is missing": ([0, 3, 4, 5], {"missed": "1: 1 (9)", "too low": "none", "recall": "1"}),
    "twice": ([1, 4, 0, 0], {"chosen twice": "1: 0", "chosen": "4 slots, 3 of them different and visible"}),
    "past the end": ([1, 4, 0, 8], {"out of range": "1: 8"}),
    "below -1": ([1, 4, -7, 0], {"out of range": "1: -7"}),
    "not visible": ([1, 4, 0, 7], {"not visible": "1: 7"}),
    "short": ([1, -1, 4, 0], {"chosen": "3 slots, 3 of them different and visible",
                             "short": "3 of 4 due slots chosen", "recall": "0.75"}),
}  # fmt: skip


@pytest.mark.parametrize("broken", BREAKAGES)
@pytest.mark.parametrize("least", [{}, {"recall": 1.0}, {"mass": 0.99}])
def test_every_breakage_is_told(broken: str, least: dict[str, Any]) -> None:
    picked, told = BREAKAGES[broken]
    scores = torch.tensor(ROW).expand(2, 3, -1)
    indices = torch.tensor([1, 4, 5, 3]).repeat(2, 3, 1)
    indices[1, 2] = torch.tensor(picked)
    if broken == "the best is missing" and "recall" in least:
        # Recall counts what reaches the k-th score, and four keys do.
        assert_selects(indices, scores, **least)
        return
    head, facts = facts_of(indices, scores, **least)
    assert "1 of 6 fail, the worst is row (1, 2)" in head
    assert facts["due"] == "4 different slots of 7 visible (k 4, T 8)"
    assert facts["boundary"] == "k-th score 4, next 4, gap 0"
    assert facts["ties"] == "3 at the k-th score, 2 of them due"
    for name in ("out of range", "not visible", "chosen twice", "NaN scores"):
        assert facts[name] == told.get(name, "none")
    for name, fact in told.items():
        assert facts[name] == fact


def test_the_gap_at_the_boundary() -> None:
    _, facts = facts_of([4, 1, 0], torch.tensor(ROW), k=2)
    assert facts["boundary"] == "k-th score 7, next 4, gap 3"
    assert facts["ties"] == "1 at the k-th score, 1 of them due"
    assert facts["chosen"] == "3 slots, 3 of them different and visible"
    _, facts = facts_of([4, 1, 0], torch.tensor(ROW[:3]), k=5)
    assert facts["boundary"] == "all 3 visible slots are due: no key follows the k-th"


def test_nan_is_told_not_compared() -> None:
    scores = torch.tensor(ROW).repeat(2, 1)
    scores[1, 6] = math.nan
    for least in ({}, {"recall": 0.1}, {"mass": 0.1}):
        head, facts = facts_of([[1, 4, 5, 3]] * 2, scores, **least)
        assert "1 of 2 fail, the worst is row (1,)" in head
        assert facts["NaN scores"] == "1: 6"
    _, facts = facts_of([0], torch.full((1,), math.nan))
    assert facts["NaN scores"] == "1: 0"


def test_the_worst_row_is_the_most_broken_one() -> None:
    scores = torch.arange(10.0).expand(4, -1)
    indices = torch.tensor([[9, 8, 7], [9, 8, 6], [9, 0, 1], [9, 8, 7]])
    head, facts = facts_of(indices, scores)
    assert "the exact Top-k by score was asked of every row; 2 of 4 fail" in head
    assert "row (2,)" in head and facts["missed"] == "2: 7 (7), 8 (8)"
    for least in ({"recall": 0.99}, {"mass": 0.9}):
        assert "row (2,)" in facts_of(indices, scores, **least)[0]
    indices[3] = torch.tensor([9, 9, 12])
    assert "3 of 4 fail, the worst is row (3,)" in facts_of(indices, scores)[0]


def test_recall_and_mass_are_asked_of_every_row() -> None:
    scores = torch.zeros(100, 64)
    scores[:, :10] = 5.0
    indices = torch.arange(10).repeat(100, 1)
    indices[37, 0] = 50
    head, facts = facts_of(indices, scores, recall=0.95)  # 0.999 on average
    assert "recall of at least 0.95" in head and "row (37,)" in head and facts["recall"] == "0.9"
    assert_selects(indices, scores, recall=0.9)
    share = 9 * math.exp(5) + 1, 10 * math.exp(5) + 54
    _, facts = facts_of(indices, scores, mass=0.95)
    assert (
        facts["mass"]
        == f"{share[0] / share[1]:.4g}, the exact Top-k's {10 * math.exp(5) / share[1]:.4g}"
    )
    assert_selects(indices, scores, mass=share[0] / share[1])
    assert_selects(indices, scores, mass=0.156, scaling=0.0)
    with pytest.raises(AssertionError, match=r"recall of at least 0.9 and mass of at least 0.95"):
        assert_selects(indices, scores, recall=0.9, mass=0.95)


def test_a_missing_slot_is_a_miss() -> None:
    scores = torch.arange(20.0)
    indices = [19, 18, 17, 16, 15, 14, 13, 12, 11, -1]
    assert_selects(indices, scores, recall=0.9)
    assert_selects(indices, scores, mass=0.99)
    assert facts_of(indices, scores, recall=0.91)[1]["recall"] == "0.9"
    assert facts_of(indices, scores)[1]["short"] == "9 of 10 due slots chosen"
    assert facts_of([*indices[:9], 10, 9], scores, k=10, recall=0.5)[1]["short"] == "none"


def test_a_finite_mask_forgives_nothing() -> None:
    scores = torch.tensor([[3.0, 2.0, 1.0, torch.finfo(torch.float32).min]])
    facts_of([[0, 2]], scores)
    facts_of([[0, 2]], scores, recall=0.9)


@pytest.mark.parametrize("never", [torch.finfo(torch.float32).min, -3e38, -1e9, -1e7, -1e4])
@pytest.mark.parametrize("tolerance", [None, 1e-6, 1e-2, 0.2])
@pytest.mark.parametrize("least", [{}, {"recall": 0.9}, {"mass": 0.9}])
def test_a_finite_mask_hides_no_random_choice(
    never: float, tolerance: float | None, least: dict[str, Any]
) -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(3, 100, generator=generator)
    scores[:, 50:] = never
    drawn = torch.stack([torch.randperm(50, generator=generator)[:16] for _ in range(3)])
    facts_of(drawn, scores, tolerance=tolerance, **least)
    assert_selects(scores.topk(16).indices, scores, tolerance=tolerance, recall=1.0)
    # More slots are due than stand before the mask: those before it are due themselves.
    facts_of(torch.arange(99, 39, -1).expand(3, -1), scores, tolerance=tolerance, **least)
    assert_selects(scores.topk(60).indices, scores, tolerance=tolerance, **least)


@settings(max_examples=300, deadline=None)
@given(choices(), st.sampled_from([0.0, 1e-6, 0.01, 0.3, 0.9]))
def test_a_tolerance_belongs_to_the_two_scores(case: Any, tolerance: float) -> None:
    scores, indices, k = case
    scores = scores.masked_fill(scores == INF, 1e6)  # of which nobody else's tolerance is made

    def right(picked: list[int], row: list[float]) -> bool:
        seen = {slot: s for slot, s in enumerate(row) if s > -INF}
        chosen = [slot for slot in picked if slot != -1]
        whole = len(chosen) == min(k, len(seen)) and len(set(chosen)) == len(chosen)
        return (
            whole
            and set(chosen) <= set(seen)
            and not any(
                a - seen[b] > tolerance * (abs(a) + abs(seen[b])) + 1e-6
                for slot, a in seen.items()
                for b in chosen
                if slot not in chosen
            )
        )

    rows = zip(
        indices.reshape(-1, indices.shape[-1]).tolist(),
        scores.reshape(-1, scores.shape[-1]).tolist(),
        strict=True,
    )
    with nullcontext() if all(right(*row) for row in rows) else pytest.raises(AssertionError):
        assert_selects(indices, scores, k=k, tolerance=tolerance)


@pytest.mark.parametrize("heads", [4, 2, 1])
@pytest.mark.parametrize("context", [nullcontext(), torch.autocast("cpu", torch.bfloat16)])
def test_a_key_of_huge_norm_is_one_key(heads: int, context: Any) -> None:
    generator = torch.Generator().manual_seed(1)
    queries = torch.randn(1, 4, 3, 32, generator=generator) + 1
    keys = torch.randn(1, 2, 200, 32, generator=generator)
    keys[:, :, 5] = -1e7  # far below all others, for every head
    stop = torch.full((1, 3), 200)
    q, x = queries.double().numpy(), keys.double().numpy()
    scores = slow_scores(q, x, heads, 32**-0.5, stop, [0])
    best = torch.from_numpy(scores).topk(8).indices
    with context:
        assert_selects(best, queries=queries, keys=keys, stop=stop)
        every: list[dict[str, Any]] = [{}, {"recall": 0.9}]
        for slots in (torch.arange(30, 38), torch.tensor([5, *range(30, 37)])):
            for least in every:
                wrong = slots.expand_as(best)
                facts_of(wrong, queries=queries, keys=keys, stop=stop, **least)


def test_a_key_known_badly_moves_no_other() -> None:
    """Of huge norm and across the query, it may rank anywhere: the k-th place is still the others'."""
    generator = torch.Generator().manual_seed(2)
    queries, keys = torch.zeros(1, 1, 1, 32), torch.randn(1, 1, 200, 32, generator=generator)
    queries[..., 0] = 1
    scores = keys[0, 0, :, 0].clone()
    eighth = scores.sort(descending=True).values[7]
    keys[0, 0, 50] = 1e8
    keys[0, 0, 50, 0] = eighth - 1e-3  # which makes it the ninth
    scores[50] = eighth - 1e-3
    best = scores.topk(9).indices.view(1, 1, 1, 9)
    wrong = (-scores).topk(8).indices.view(1, 1, 1, 8)
    wrong = torch.cat([best[..., 8:], wrong], -1)
    every: list[dict[str, Any]] = [{}, {"recall": 0.9}]
    for least in every:
        assert_selects(best, queries=queries, keys=keys, **least)
        facts_of(wrong, queries=queries, keys=keys, **least)


def test_who_changes_places_is_told() -> None:
    _, facts = facts_of([0, 2], torch.tensor([10.0, 6.0, 5.0, 1.0]))
    assert facts["swapped"] == "1 (6) left out for 2 (5)"


def test_near_scores_are_one_where_a_tolerance_says_so() -> None:
    scores = torch.tensor([10.0, 5.00001, 5.0, 1.0])
    facts_of([0, 2], scores)
    assert_selects([0, 2], scores, tolerance=1e-5)
    facts_of([0, 3], scores, tolerance=1e-5)


def slow_scores(queries: Any, keys: Any, lists: int, scaling: float, stop: Any, start: Any) -> Any:
    """Float64 dot products [B, Hs, Tq, T], or means of weights where heads share a list."""
    (rows, heads, count, _), (batch, groups, length, _) = queries.shape, keys.shape
    found = np.full((rows, heads, count, length), -INF)
    for b, h, i, t in np.ndindex(*found.shape):
        if start[b] <= t < stop[b % len(stop)][i]:
            found[b, h, i, t] = queries[b, h, i] @ keys[b % batch, h * groups // heads, t]
    if lists == heads:
        return found
    shared = np.full((rows, lists, count, length), -INF)
    for b, u, i in np.ndindex(rows, lists, count):
        own = range(u * heads // lists, (u + 1) * heads // lists)
        seen = [t for t in range(length) if found[b, own[0], i, t] > -INF]
        for t in seen:
            weights = [
                math.exp(scaling * found[b, h, i, t])
                / sum(math.exp(scaling * found[b, h, i, s]) for s in seen)
                for h in own
            ]
            shared[b, u, i, t] = sum(weights) / len(weights)
    return shared


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from([(1, 1), (4, 1), (4, 2), (6, 3), (3, 3)]),
    st.sampled_from(["plain", "lengths", "stop", "start"]),
    st.booleans(),
    st.sampled_from([1, 1 << 20]),
)
def test_queries_and_keys(
    seed: int, heads: tuple[int, int], bounds: str, one_cache: bool, block: int
) -> None:
    rng = np.random.default_rng(seed)
    rows, count, length, k = 2, int(rng.integers(1, 4)), int(rng.integers(4, 9)), 3
    # Whole numbers: equal dot products are equal in any precision.
    queries = rng.integers(-2, 3, (rows, heads[0], count, 4)).astype(np.float32)
    keys = rng.integers(-2, 3, (1 if one_cache else rows, heads[1], length, 4)).astype(np.float32)
    real = rng.integers(count, length + 1, rows) if bounds == "lengths" else np.full(rows, length)
    stop = real[:, None] - count + 1 + np.arange(count)
    start = rng.integers(0, 3, rows) if bounds == "start" else np.zeros(rows, dtype=int)
    given_bounds: dict[str, Any] = {"lengths": real} if bounds == "lengths" else {}
    if bounds == "stop":
        stop = rng.integers(0, length + 1, (rows, count))
        given_bounds["stop"] = stop
    if bounds == "start":
        given_bounds["start"] = start
    for lists in {*heads, 1}:
        exact = torch.from_numpy(slow_scores(queries, keys, lists, 0.7, stop, start))
        # Means of weights are equal but for rounding.
        indices = select_topk(exact.float() if lists == heads[0] else exact, k)
        given_too = {"queries": queries, "keys": keys, "k": k, "scaling": 0.7, **given_bounds}
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(selects, "BLOCK", block)
            assert_selects(indices, **given_too)
            place = tuple(int(n) for n in rng.integers((rows, lists, count)))
            row = exact[place]
            low = [t for t in range(length) if -INF < row[t] < row[indices[place][-1]] - 1e-4]
            if indices[place][-1] >= 0 and low:
                indices[place][0] = low[0]
                head, facts = facts_of(indices, **given_too)
                assert f"1 of {rows * lists * count} fail, the worst is row {place}" in head
                assert facts["too low"].startswith(f"1: {low[0]} (")


def test_what_a_query_cannot_see_may_hold_anything() -> None:
    torch.manual_seed(0)
    queries, keys = torch.randn(1, 2, 2, 4), torch.randn(1, 2, 9, 4)
    exact = (queries @ keys.mT).masked_fill(torch.ones(2, 9).tril(5) == 0, -INF)[..., :7]
    keys[:, :, 7:] = math.nan
    assert_selects(exact.topk(3).indices, queries=queries, keys=keys, lengths=[7])
    _, facts = facts_of(exact.topk(3).indices, queries=queries, keys=keys)
    assert facts["NaN scores"] == "2: 7, 8"


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "nothing to judge by": ({}, "expected scores, or queries and keys"),
    "keys alone": ({"keys": torch.ones(1, 1, 5, 4)}, "expected scores, or queries and keys"),
    "both": (
        {"scores": torch.ones(1, 1, 1, 5), "queries": torch.ones(1, 1, 1, 4), "keys": torch.ones(1, 1, 5, 4)},
        "give them alone",
    ),
    "other rows": ({"scores": torch.ones(1, 2, 1, 5)}, r"must be \[1, 2, 1, 'k'\]"),
    "k": ({"scores": torch.ones(1, 1, 1, 5), "k": 0}, "k must be at least 1"),
    "recall": ({"scores": torch.ones(1, 1, 1, 5), "recall": 1.5}, "recall must lie above 0"),
    "mass": ({"scores": torch.ones(1, 1, 1, 5), "mass": 0.0}, "mass must lie above 0"),
    "no keys": ({"scores": torch.ones(1, 1, 1, 0)}, "T at least 1"),
    "D": ({"queries": torch.ones(1, 2, 1, 4), "keys": torch.ones(1, 1, 5, 3)}, "do not fit"),
    "heads": ({"queries": torch.ones(1, 3, 1, 4), "keys": torch.ones(1, 2, 5, 4)}, "do not fit"),
    "Hs": (
        {"indices": torch.zeros(1, 3, 1, 1, dtype=torch.long), "queries": torch.ones(1, 6, 1, 4), "keys": torch.ones(1, 2, 5, 4)},
        r"one of \[1, 2, 6\]; got Hs 3",
    ),
    "floats": ({"indices": torch.zeros(1, 1, 1, 1), "scores": torch.ones(1, 1, 1, 5)}, "integers"),
    "text": ({"scores": "scores"}, "torch tensor or numpy array; got str"),
    "no rows": ({"indices": torch.zeros(0, 1, dtype=torch.long), "scores": torch.ones(0, 5)}, "one row"),
    "lengths": (
        {"queries": torch.ones(1, 1, 1, 4), "keys": torch.ones(1, 1, 5, 4), "lengths": [5, 5]},
        r"lengths and start must be \[B\]",
    ),
    "lengths and stop": (
        {"queries": torch.ones(1, 1, 1, 4), "keys": torch.ones(1, 1, 5, 4), "lengths": [5], "stop": [[5]]},
        "not both",
    ),
}  # fmt: skip

SCORES = {"scores": torch.ones(1, 1, 1, 5)}
KEYS: dict[str, Any] = {"queries": torch.ones(1, 1, 2, 4), "keys": torch.ones(1, 1, 5, 4)}
BAD |= {
    **{
        f"{name} {value!r}": ({**SCORES, name: value}, f"{name} must")
        for name, values in {
            "k": (0, -1, 16.5, 2.0, True, "2", math.nan),
            "tolerance": (INF, -INF, -1.0, math.nan, 1.0, 2, True, "1e-6"),
            "scaling": (INF, math.nan, -1.0, "1"),
            "recall": (math.nan, INF, -0.5, True, "0.9"),
            "mass": (math.nan, 1.01, 0, True),
        }.items()
        for value in values
    },
    **{
        f"{name} {value!r}": ({**KEYS, name: value}, rf"{name} must .*; (got|row)")
        for name, values in {
            "lengths": ([6], [400], [-1], [1], [4.5], [math.nan], [INF], [True], np.array([4.5])),
            "start": ([6], [-1], [0.5], [True]),
            "stop": ([[5, 6]], [[-9, -9]], [[4.5, 5]], [[INF, INF]]),
        }.items()
        for value in values
    },
    "more queries than keys": (
        {"queries": torch.ones(1, 1, 6, 4), "keys": KEYS["keys"]},
        "lengths must hold the 6 queries",
    ),
    "start behind stop": (
        {**KEYS, "start": [4], "stop": [[2, 3]]},
        "row 0 starts at 4 and stops at 3",
    ),
    "start behind lengths": (
        {**KEYS, "start": [4], "lengths": [3]},
        "row 0 starts at 4 and stops at 3",
    ),
    "a mask for scores": ({"scores": torch.ones(1, 1, 1, 5, dtype=torch.bool)}, "must be numbers"),
    "complex": ({"scores": torch.ones(1, 1, 1, 5, dtype=torch.complex64)}, "real numbers"),
    "queries of no dimension": (
        {"queries": torch.ones(1, 1, 2, 0), "keys": torch.ones(1, 1, 5, 0)},
        "expected one batch and D of at least 1",
    ),
    "weights that know no score": (
        {"queries": torch.ones(1, 2, 2, 4), "keys": KEYS["keys"], "scaling": 0},
        "a shared list is judged by weights",
    ),
    "ragged": ({"scores": [[1.0], [1.0, 2.0]]}, "must be an array of numbers"),
    "objects": ({"scores": np.array([None, 1])}, "must be an array of numbers"),
}


def test_bounds_that_are_possible_are_judged() -> None:
    """A row of no key, padding before the queries, numpy's numbers, floats that are whole."""
    none = torch.full((1, 1, 2, 3), -1)
    assert_selects(none, **KEYS, lengths=[0])
    assert_selects(none, **KEYS, stop=[[0, 0]], start=[0])
    last = none.clone()
    last[0, 0, 1, 0] = 4
    numpys: dict[str, Any] = {"k": np.int64(3), "tolerance": np.float32(1e-6)}
    assert_selects(last, **KEYS, **numpys, start=np.array([4]))
    assert_selects(last, **KEYS, start=[4.0], lengths=torch.tensor([5.0]))
    assert_selects(last, **KEYS, k=10**30, start=[4])


@pytest.mark.parametrize("dtype", [torch.int8, torch.int32, torch.float8_e4m3fn, torch.float16])
def test_queries_and_keys_of_any_type_of_number(dtype: torch.dtype) -> None:
    queries, keys = (torch.randint(-4, 5, (1, 2, n, 8)).to(dtype) for n in (1, 40))
    indices = (queries.float() @ keys.float().mT).topk(5).indices
    assert_selects(indices, queries=queries, keys=keys)
    with pytest.raises(AssertionError, match="Top-k"):
        assert_selects(
            (-queries.float() @ keys.float().mT).topk(5).indices, queries=queries, keys=keys
        )


@pytest.mark.parametrize("bad", BAD)
def test_what_cannot_be_judged_is_refused(bad: str) -> None:
    given_bad, said = BAD[bad]
    indices = given_bad.get("indices", torch.zeros(1, 1, 1, 1, dtype=torch.long))
    with pytest.raises(InputError, match=said):
        assert_selects(indices, **{n: x for n, x in given_bad.items() if n != "indices"})
