"""assert_selects on lists as engines hand them over, against a slow verdict; every broken kernel is refused."""

from __future__ import annotations

import math
import random
import re
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from slow_gate import FORMS, MUTANTS, NEVER, Case, best, draw, figures, right
from topkit.errors import InputError
from topkit.testing import REAL_KINDS, REAL_LAYERS, assert_selects, real_tensors

LEAST: list[dict[str, Any]] = [
    {},
    {"recall": 0.7},
    {"mass": 0.4},
    {"mass_ratio": 0.8},
    {"mass_ratio": 1.0},
]


def perfect(case: Case, rng: random.Random) -> list[list[int]]:
    return [best(row, case.k, rng) for row in case.rows]


@settings(max_examples=90, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from(FORMS), st.booleans())
def test_a_perfect_kernel_passes_and_is_summed_up(seed: int, form: str, paged: bool) -> None:
    rng = random.Random(seed)
    case = draw(rng, form, paged)
    slots = perfect(case, rng)
    summary = [assert_selects(case.listed(slots), **case.call, **least) for least in LEAST[:2]]
    assert_selects(case.listed(slots), **case.call, mass_ratio=1.0)
    known = np.array([figures(s, r, case.k) for s, r in zip(slots, case.rows, strict=True)])
    assert summary[0] == summary[1] and (summary[0].rows, summary[0].k) == (len(case.rows), case.k)
    assert summary[0].ties == known[:, 3].sum()
    for name, column in zip(("recall", "mass", "mass_ratio"), known.T, strict=False):
        spread, ordered = getattr(summary[0], name), sorted(column)
        assert spread.mean == pytest.approx(column.mean(), abs=1e-5)
        assert spread.worst == pytest.approx(ordered[0], abs=1e-5)
        for share in (1, 10, 50):
            of = spread.median if share == 50 else getattr(spread, f"p{share}")
            assert of == pytest.approx(ordered[len(ordered) * share // 100], abs=1e-5)


@settings(max_examples=180, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from(FORMS),
    st.booleans(),
    st.sampled_from(MUTANTS),
    st.sampled_from(LEAST),
)
def test_a_broken_kernel_is_refused_where_the_slow_verdict_says_so(
    seed: int, form: str, paged: bool, mutant: Any, least: dict[str, Any]
) -> None:
    rng = random.Random(seed)
    case = draw(rng, form, paged)
    slots = perfect(case, rng)
    spoilt = rng.randrange(len(slots))
    slots[spoilt] = mutant(case, spoilt, slots[spoilt], rng)
    good = [right(s, r, case.k, least) for s, r in zip(slots, case.rows, strict=True)]
    with nullcontext() if all(good) else pytest.raises(AssertionError) as raised:
        assert_selects(case.listed(slots), **case.call, **least)
    if raised is not None:
        head = str(raised.value).splitlines()[0]
        named = ", ".join(f"{name} {at}" for name, at in case.places[good.index(False)].items())
        if sum(good) == len(good) - 1:
            assert f"; 1 of {len(good)} fail, the worst is row (" in head
            assert head.endswith(f": {named}") or "list" in head
        assert re.search(r"^  over all rows: recall mean ", str(raised.value), re.MULTILINE)


def on_real(
    layer: int, kind: str, broken: Any, length: int = 1000
) -> tuple[torch.Tensor, dict[str, Any]]:
    """What a kernel lists of real tensors, pages of 64 behind a block table, of 1,024 keys with padding."""
    real, k = real_tensors(layer, kind, queries=3, tokens=1024), 32
    table = torch.randperm(40, generator=torch.Generator().manual_seed(layer))[:16]
    case = Case((1, 9, 3), [], [], [], [], {}, k, 64)
    scores = real.queries @ real.keys.repeat_interleave(3, 1).mT
    for h in range(9):
        for i in range(3):
            case.unmasked.append(scores[0, h, i].tolist())
            case.rows.append(
                scores[0, h, i, : length - 2 + i].tolist() + [NEVER] * (1026 - length - i)
            )
            case.ids.append(lambda s: int(table[s // 64]) * 64 + s % 64 if s < 1024 else 9999)
    rng = random.Random(0)
    slots = [best(row, k, rng) for row in case.rows]
    if broken is not None:
        slots = [broken(case, n, own, rng) for n, own in enumerate(slots)]
    call = {
        "queries": real.queries,
        "keys": real.keys,
        "lengths": [length],
        "scaling": real.scaling,
    }
    return torch.from_numpy(case.listed(slots)), call | {
        "block_table": table[None],
        "page_size": 64,
    }


# Of the eight, those that break lists which are full.
BREAKING = [one for one in MUTANTS if one.__name__ not in ("fills_with_zero", "ignores_lengths")]


@pytest.mark.parametrize("layer", [REAL_LAYERS[0], REAL_LAYERS[-1]])
@pytest.mark.parametrize("kind", REAL_KINDS)
def test_mutants_are_refused_on_real_tensors(layer: int, kind: str) -> None:
    listed, call = on_real(layer, kind, None)
    assert assert_selects(listed, **call).rows == 27
    for mutant in BREAKING:
        if mutant.__name__ == "off_by_one" and kind in ("ties", "plateau"):
            continue  # the next after the boundary scores as much
        if mutant.__name__ == "drops_last_page" and kind == "plateau":
            continue  # as much stands in every page
        listed, call = on_real(layer, kind, mutant)
        with pytest.raises(AssertionError, match="of 27 fail, the worst is row"):
            assert_selects(listed, **call)


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda one: one.__name__)
def test_mutants_are_refused_on_rows_that_are_shorter_than_k(mutant: Any) -> None:
    listed, call = on_real(8, "captured", None, 20)
    assert assert_selects(listed, **call).rows == 27
    listed, call = on_real(8, "captured", mutant, 20)
    if mutant.__name__ == "off_by_one":
        assert (
            assert_selects(listed, **call).ties == 0
        )  # every visible slot is due: there is no boundary
        return
    with pytest.raises(AssertionError, match="27 of 27 fail, the worst is row"):
        assert_selects(listed, **call)


def message(*args: Any, **kwargs: Any) -> str:
    with pytest.raises(AssertionError) as raised:
        assert_selects(*args, **kwargs)
    return str(raised.value)


def test_mass_that_no_kernel_has_is_told() -> None:
    scores = torch.zeros(2, 100)
    said = message(scores.topk(10).indices, scores, mass=0.9)
    assert "hint: the exact Top-k itself has a mass of 0.1: mass_ratio=" in said
    assert assert_selects(scores.topk(10).indices, scores, mass_ratio=1).mass.mean == pytest.approx(
        0.1
    )


def test_a_share_of_the_best_mass_is_asked_where_mass_itself_is_low() -> None:
    scores = torch.arange(100.0) / 1000
    chosen = [99, 98, 97, 96, 94]  # the best five but for the fifth
    ratio = sum(math.exp(s / 1000) for s in chosen) / sum(
        math.exp(s / 1000) for s in range(95, 100)
    )
    summary = assert_selects(chosen, scores, mass_ratio=ratio)
    assert summary.mass_ratio.worst == pytest.approx(ratio, abs=1e-6) and summary.mass.worst < 0.06
    assert "mass ratio of at least 0.9999 was asked" in message(chosen, scores, mass_ratio=0.9999)


def test_what_is_exact_within_its_tolerance_has_all_of_the_mass() -> None:
    scores = torch.tensor([10.0, 5, 4.9])
    assert assert_selects([0, 2], scores, tolerance=0.02, mass_ratio=1).mass_ratio.worst < 1
    assert "mass ratio of at least 1" in message([0, 2], scores, tolerance=0.001, mass_ratio=1)


@pytest.mark.parametrize(("dtype", "most"), [(torch.bfloat16, 0.004), (torch.float16, 0.0005)])
def test_rounded_scores_are_told_the_tolerance_that_does(dtype: torch.dtype, most: float) -> None:
    real = real_tensors(15)
    chosen = real.scores.to(dtype).sort(dim=-1, stable=True, descending=True).indices[..., :600]
    said = message(chosen, real.scores)
    least = re.search(r"hint: tolerance=([\d.e-]+) admits this choice", said)
    assert least is not None and 0 < float(least[1]) <= most
    assert_selects(chosen, real.scores, tolerance=most)
    wrong = torch.arange(600).expand_as(chosen)
    assert "tolerance=" not in message(wrong, real.scores)


def test_fillings_are_told() -> None:
    scores = torch.arange(12.0).view(2, 6)
    for fill in (0, 6, 2**31 - 1):
        listed = [[1, 0, fill, fill], [5, 4, 3, 2]]
        said = message(listed, scores, lengths=[2, 6])
        assert (
            f"hint: 4 places and 2 visible slots: fill the 2 others with -1 (now {fill}, 2 times)"
            in said
        )
    assert assert_selects([[1, 0, -1, -1], [5, 4, 3, 2]], scores, lengths=[2, 6]).recall.worst == 1


def test_ids_of_another_numbering_are_told() -> None:
    case = draw(random.Random(5), "rows", True)
    listed = case.listed(perfect(case, random.Random(0)))
    without = {n: x for n, x in case.call.items() if n not in ("block_table", "page_size")}
    assert "physical ids of a paged cache go with block_table= and page_size=" in message(
        listed + 100, **without
    )
    moved = case.call | {"block_table": case.call["block_table"] + 100}
    said = message(listed, **moved)
    assert "out of range are ids of pages that this row's block table lacks" in said
    assert f"through pages of {case.page}" in said


def test_the_causal_edge_is_told() -> None:
    real = real_tensors(8, queries=2, tokens=50)
    scores = real.scores.clone()
    scores[..., 0, 49] = 99  # the next token's, which the first of two queries does not see
    said = message(scores.topk(4).indices, queries=real.queries, keys=real.keys)
    assert "hint: slot 49 comes right after the last visible one" in said


def test_the_worst_row_is_the_one_that_keeps_least() -> None:
    scores = torch.zeros(2, 3, 4, 50)
    scores[1, 2, 0, 1] = -3
    summary = assert_selects(torch.tensor([0, 1]).expand(2, 3, 4, 2), scores, recall=0.5)
    assert summary.worst == {"batch": 1, "head": 2, "query": 0} and summary.recall.worst == 0.5
    assert "worst: batch 1, head 2, query 0" in str(summary) and str(summary).startswith(
        "24 rows, k 2: recall mean"
    )


def test_heads_that_share_a_list_are_named_so() -> None:
    real = real_tensors(1, tokens=64)
    for lists, name in ((9, "head"), (3, "group"), (1, "list")):
        weights = (real.scores * real.scaling).softmax(-1).unflatten(1, (lists, -1)).mean(2)
        summary = assert_selects(weights.topk(8).indices, queries=real.queries, keys=real.keys)
        assert list(summary.worst) == ["batch", name, "query"]


@pytest.mark.parametrize("lists", [9, 3, 1])
def test_ragged_lists_of_real_heads_are_those_of_each_sequence_alone(lists: int) -> None:
    """Chunks of two sequences of two layers, whose keys stand one after the other."""
    first = real_tensors(8, queries=3, tokens=90)
    second = real_tensors(22, "ties", queries=2, tokens=40)
    chosen, alone = [], []
    for one in (first, second):
        weights = (one.scores * one.scaling).softmax(-1).unflatten(1, (lists, -1)).mean(2)
        weights = weights if lists < 9 else one.scores
        best = weights.sort(dim=-1, descending=True, stable=True).indices[..., :8]
        call = {"queries": one.queries, "keys": one.keys, "scaling": one.scaling}
        alone.append(assert_selects(best, **call))
        chosen.append(best[0].transpose(0, 1))
    ragged = {
        "queries": torch.cat([one.queries[0].transpose(0, 1) for one in (first, second)]),
        "keys": torch.cat([one.keys[0].transpose(0, 1) for one in (first, second)]),
        "scaling": first.scaling, "cu_seqlens": torch.tensor([0, 3, 5]), "lengths": torch.tensor([90, 40]),
    }  # fmt: skip
    listed = torch.cat(chosen)
    summary = assert_selects(listed if lists > 1 else listed[:, 0], **ragged)
    assert summary.rows == 5 * lists and summary.ties == sum(one.ties for one in alone)
    assert summary.mass.mean * 5 == pytest.approx(
        alone[0].mass.mean * 3 + alone[1].mass.mean * 2, rel=1e-5
    )
    listed[3, 0, 0] = 39  # which the first query of the second sequence does not see
    said = message(listed if lists > 1 else listed[:, 0], **ragged)
    assert "the worst is row (3" in said and "token 3" in said and "sequence 1, query 0\n" in said


def test_scores_of_queries_take_start_and_stop() -> None:
    scores = torch.arange(8.0).expand(2, 3, 2, 8)
    stop, start = torch.tensor([[3, 4], [7, 8]]), torch.tensor([0, 6])
    own = torch.tensor([[[2, 1], [3, 2]], [[6, -1], [7, 6]]])[:, None].expand(2, 3, 2, 2)
    assert assert_selects(own, scores, start=start, stop=stop).rows == 12
    assert "1: 3" in message(own.index_fill(3, torch.tensor([1]), 3)[:1], scores[:1], stop=stop[:1])


def test_infinite_scores_have_no_mass() -> None:
    scores = torch.tensor([[0.0, math.inf, 1.0]])
    summary = assert_selects([[1, 2]], scores)
    assert (
        summary.recall.mean == 1
        and math.isnan(summary.mass.mean)
        and math.isnan(summary.mass_ratio.worst)
    )


def test_pages_in_use_may_be_shared_by_rows_and_others_hold_anything() -> None:
    scores = torch.tensor([[5.0, 4, 3, 2, 1, 0], [0.0, 1, 2, 3, 4, 5]])
    table = [[7, 3, 7], [7, 2, -1]]  # the third page of each is behind its lengths
    listed = [[14, 15], [5, 4]]
    assert_selects(listed, scores, lengths=[4, 4], block_table=table, page_size=2)
    assert_selects(
        listed[:1], scores[:1].index_fill(1, torch.tensor([4, 5]), NEVER),
        block_table=table[:1], page_size=2,
    )  # fmt: skip


ONE: dict[str, Any] = {"scores": torch.ones(2, 6), "lengths": [4, 6]}
KEYS: dict[str, Any] = {"queries": torch.ones(3, 2, 4), "keys": torch.ones(9, 1, 4)}
PAGES: dict[str, Any] = {**ONE, "page_size": 2}
BAD: dict[str, tuple[dict[str, Any], str]] = {
    "repeated pages": ({**PAGES, "block_table": [[1, 2, 3], [4, 5, 4]]}, "row 1 has page 4 more than once"),
    "a page that is missing": ({**PAGES, "block_table": [[1, -1, 3], [4, 5, 6]]}, "row 0 lacks page 1 of the 2"),
    "too few pages": ({**PAGES, "block_table": [[1, 2], [4, 5]]}, "2 pages of 2 a row; row 1 wants 3"),
    "no pages": ({**PAGES, "block_table": np.zeros((2, 0), int)}, "0 pages of 2 a row"),
    "pages of other rows": ({**PAGES, "block_table": [[1, 2, 3]]}, r"block_table must be \[2, pages\]"),
    "pages in a line": ({**PAGES, "block_table": [1, 2, 3]}, r"block_table must be \[2, pages\]"),
    "half a page": ({**PAGES, "block_table": [[1, 2.5, 3], [4, 5, 6]]}, "whole numbers of slots"),
    "no page size": ({**ONE, "block_table": [[1, 2, 3], [4, 5, 6]]}, "block_table and page_size come together"),
    "a page size alone": (PAGES, "block_table and page_size come together"),
    "a page of nothing": ({**PAGES, "page_size": 0, "block_table": [[1], [2]]}, "page_size must be at least 1"),
    "lengths beyond": ({**ONE, "lengths": [4, 7]}, "lengths must be 0 to 6"),
    "lengths below": ({**ONE, "lengths": [4, -1]}, "lengths must be 0 to 6"),
    "lengths of other rows": ({**ONE, "lengths": [4, 6, 6]}, "one number for each row of the scores"),
    "lengths of a batch of what": (
        {"scores": torch.ones(2, 3, 6), "indices": torch.zeros(2, 3, 1, dtype=torch.long), "lengths": [4, 6]},
        r"one number for each row of the scores, \[2, 3\]; got \[2\]",
    ),
    "lengths and stop": (
        {"scores": torch.ones(2, 1, 1, 6), "indices": torch.zeros(2, 1, 1, 1, dtype=torch.long),
         "lengths": [4, 6], "stop": [[1]]}, "not both"),
    "start of rows": ({"scores": torch.ones(2, 6), "start": [0, 1]}, "start and stop go with scores"),
    "mass_ratio": ({**ONE, "mass_ratio": 1.5}, "mass_ratio must lie above 0"),
    "mass_ratio of nothing": ({**ONE, "mass_ratio": 0}, "mass_ratio must lie above 0"),
}  # fmt: skip
TOKENS = torch.zeros(3, 2, 1, dtype=torch.long)
RAGGED = {"indices": TOKENS, **KEYS, "lengths": [4, 5]}
BAD |= {
    f"cu_seqlens {value}": (
        {**RAGGED, "cu_seqlens": value},
        r"cu_seqlens must be (\[B \+ 1\]|whole)",
    )
    for value in (
        [0, 3, 4],
        [1, 2, 3],
        [0, 2],
        [0, 2, 1, 3],
        [3],
        [[0, 1, 3]],
        [0, 1.5, 3],
        [-1, 1, 3],
    )
}
BAD |= {
    "lengths of other sequences": ({**RAGGED, "cu_seqlens": [0, 3]}, r"lengths must be \[1\]"),
    "lengths below queries": (
        {**RAGGED, "cu_seqlens": [0, 1, 3], "lengths": [8, 1]},
        "sequence 1 has 2 queries and 1 keys",
    ),
    "lengths that do not add up": (
        {**RAGGED, "cu_seqlens": [0, 1, 3], "lengths": [4, 6]},
        r"keys must be \[10, Hk, D\]",
    ),
    "keys of none": (
        {"indices": TOKENS, **KEYS, "cu_seqlens": [0, 1, 3]},
        r"keys must be \[3, Hk, D\]",
    ),
    "queries in a batch": (
        {**RAGGED, "queries": torch.ones(1, 2, 3, 4), "cu_seqlens": [0, 1, 3]},
        r"queries must be \[3, Hq, D\]",
    ),
    "queries alone": (
        {"indices": TOKENS, "queries": KEYS["queries"], "cu_seqlens": [0, 1, 3]},
        "expected scores alone, or queries and keys",
    ),
    "indices in a batch": (
        {**RAGGED, "indices": TOKENS[..., None], "cu_seqlens": [0, 1, 3]},
        r"indices must be \[tokens, k\]",
    ),
    "start with cu_seqlens": ({**RAGGED, "cu_seqlens": [0, 1, 3], "start": [0]}, "leave out start and stop"),
    "scores too short": (
        {"indices": TOKENS[:, 0], "scores": torch.ones(3, 4), "cu_seqlens": [0, 1, 3], "lengths": [4, 5]},
        "T at least the longest sequence's 5",
    ),
    "no tokens": (
        {"indices": TOKENS[:0, 0], "scores": torch.ones(0, 4), "cu_seqlens": [0, 0]},
        "at least one row",
    ),
    "a table of other sequences": (
        {**RAGGED, "cu_seqlens": [0, 1, 3], "block_table": [[1, 2, 3]], "page_size": 2},
        r"block_table must be \[2, pages\], a line for each sequence",
    ),
    "no queries": (
        {"indices": torch.zeros(2, 2, 0, 1).long(), "queries": torch.ones(2, 2, 0, 4), "keys": torch.ones(2, 1, 9, 4)},
        "queries must hold at least one row",
    ),
    "sparse keys": (
        {"queries": torch.ones(1, 2, 1, 4), "keys": torch.ones(1, 1, 9, 4).to_sparse()},
        "keys must be an ordinary tensor; got one that is sparse_coo",
    ),
    "indices without numbers": (
        {"indices": torch.zeros(2, 1, device="meta").long(), "scores": torch.ones(2, 4)},
        "indices must be an ordinary tensor",
    ),
    "heads that stand first": (
        {"queries": torch.ones(3, 2, 4), "keys": torch.ones(9, 1, 4)},
        "goes with cu_seqlens",
    ),
}  # fmt: skip


@pytest.mark.parametrize("bad", BAD)
def test_what_cannot_be_judged_is_refused(bad: str) -> None:
    how, said = BAD[bad]
    indices = how.get("indices", torch.zeros(2, 1, dtype=torch.long))
    with pytest.raises(InputError, match=said):
        assert_selects(indices, **{n: x for n, x in how.items() if n != "indices"})
