"""Truth and metrics against slow float64 renderings of their formulas."""

import math
from typing import Any
from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from topkit.errors import InputError
from topkit.fidelity import METRICS, judge, judge_units, overlap, truth, unit_truth
from topkit.indexers import Rest, Selection
from topkit.kernels.gather_attention import long_lists
from topkit.kernels.score import score

ROWS = 1e-4


@st.composite
def problems(draw):
    """Tensors of odd shapes, ties on purpose, padding, and a random valid selection."""
    groups, per = draw(st.sampled_from([(1, 1), (2, 1), (2, 3), (1, 4)]))
    batch, count = draw(st.integers(1, 2)), draw(st.integers(1, 3))
    length = draw(st.integers(count, 40))
    seed = draw(st.integers(0, 10**6))
    g = torch.Generator().manual_seed(seed)
    queries = torch.randn(batch, groups * per, count, 5, generator=g)
    keys = torch.randn(batch, groups, length, 5, generator=g)
    if draw(st.booleans()):  # ties: few different keys
        keys = keys[:, :, torch.randint(0, max(1, length // 4), (length,), generator=g)]
    values = torch.randn(batch, groups, length, 3, generator=g)
    start = torch.randint(0, length - count + 1, (batch,), generator=g)
    stop = torch.arange(length - count + 1, length + 1)[None]
    k = draw(st.integers(1, length + 2))
    lists = draw(st.sampled_from(sorted({1, groups, groups * per})))
    indices = torch.full((batch, lists, count, min(k, length)), -1)
    for b in range(batch):
        for h in range(lists):
            for i in range(count):
                free = torch.randperm(int(stop[0, i] - start[b]), generator=g) + start[b]
                most = min(k, len(free))
                kept = int(torch.randint(0, most + 1, (1,), generator=g)) if seed % 3 else most
                indices[b, h, i, :kept] = free[:kept]
    weights = torch.randn(indices.shape, generator=g).masked_fill(indices < 0, 0)
    log_weights = weights if draw(st.booleans()) else None
    return queries, keys, values, start, stop, k, Selection(indices, log_weights)


def rows(problem):
    """Each query row by itself: its scores, its chosen slots, its values, in float64."""
    queries, keys, values, start, stop, _k, selection = problem
    per, share = queries.shape[1] // keys.shape[1], queries.shape[1] // selection.indices.shape[1]
    for b in range(queries.shape[0]):
        for h in range(queries.shape[1]):
            for i in range(queries.shape[2]):
                seen = range(int(start[b]), int(stop[0, i]))
                q = queries[b, h, i].double()
                scores = {t: float(q @ keys[b, h // per, t].double()) for t in seen}
                picked = [t for t in selection.indices[b, h // share, i].tolist() if t >= 0]
                extra = {}
                if selection.log_weights is not None:
                    line = selection.log_weights[b, h // share, i].tolist()
                    extra = dict(
                        zip(selection.indices[b, h // share, i].tolist(), line, strict=True)
                    )
                yield (b, h, i), scores, picked, extra, values[b, h // per].double()


def slow(scores, off, picked, extra, values, k, scaling):
    """Every metric of one row, written out; `off` is the rounding of each score."""
    n = len(scores)
    ranked = sorted(scores.values(), reverse=True)
    floors = sorted((scores[t] - off[t] for t in scores), reverse=True)
    m = min(k, n)
    z = sum(math.exp(scaling * s) for s in ranked)
    a = {t: math.exp(scaling * s) / z for t, s in scores.items()}

    def found(count):
        if count == 0:
            return math.nan
        return min(count, sum(scores[t] + off[t] >= floors[count - 1] for t in picked)) / count

    mass = sum(a[t] for t in picked)
    kept = len(picked)
    ours = sorted((scores[t] for t in picked), reverse=True)
    both = min(kept, m)
    dense = sum((a[t] * values[t] for t in scores), torch.zeros(3).double())
    w = {t: math.exp(scaling * scores[t] + extra.get(t, 0.0)) for t in picked}
    sparse = sum((w[t] * values[t] for t in picked), torch.zeros(3).double())
    sparse = sparse / sum(w.values()) if picked else sparse
    entropy = -sum(p * math.log(p) for p in a.values() if p > 0)
    return {
        "visible": n,
        "kept": kept,
        "trivial": float(k >= n),
        "recall": found(m),
        "own_recall": found(min(kept, n)),
        "mass": mass,
        "mass_ratio": mass / (sum(math.exp(scaling * s) for s in ranked[:m]) / z),
        "mass_estimate": sum(a[t] * math.exp(extra[t]) for t in picked) if extra else math.nan,
        "top1": float(any(scores[t] + off[t] >= floors[0] for t in picked)),
        "output_error": float((sparse - dense).norm() / dense.norm()),
        "score_regret": scaling
        * sum(x - y for x, y in zip(ranked[:both], ours, strict=False))
        / both
        if both
        else math.nan,
        "entropy": entropy,
        "support": math.exp(entropy),
    }


def rounding(problem, place):
    """A millionth of |q| |k|, of each visible key."""
    queries, keys, _, start, stop, *_ = problem
    b, h, i = place
    q, group = queries[b, h, i].double().norm(), h // (queries.shape[1] // keys.shape[1])
    seen = range(int(start[b]), int(stop[0, i]))
    return {t: 1e-6 * float(q * keys[b, group, t].double().norm()) for t in seen}


@settings(max_examples=60, deadline=None)
@given(problems(), st.sampled_from([0.3, 1.0, 2.5]), st.sampled_from([1, 1 << 20]))
def test_metrics_are_their_formulas(problem, scaling, memory):
    queries, keys, values, start, stop, k, selection = problem
    exact = truth(queries, keys, values, k, scaling=scaling, start=start, stop=stop, memory=memory)
    with patch.multiple(long_lists, GATHERED=memory, WHOLE=memory):
        columns = judge(exact, queries, keys, values, selection, k)
    assert set(columns) == {"visible", "trivial", *METRICS}
    for place, scores, picked, extra, v in rows(problem):
        off = rounding(problem, place)
        # What the scores themselves are off by is a fraction of the rounding that is forgiven.
        low, high = (
            slow(scores, {t: part * x for t, x in off.items()}, picked, extra, v, k, scaling)
            for part in (0.8, 1.2)
        )
        for name in low:
            got = float(columns[name][place])
            if low[name] < high[name]:
                assert low[name] - ROWS <= got <= high[name] + ROWS, name
            else:
                assert got == pytest.approx(low[name], rel=ROWS, abs=ROWS, nan_ok=True), name


@settings(max_examples=40, deadline=None)
@given(problems())
def test_a_shared_selection_is_judged_once_a_unit(problem):
    queries, keys, values, start, stop, k, selection = problem
    units = selection.indices.shape[1]
    exact = truth(queries, keys, values, k, scaling=0.7, start=start, stop=stop)
    shared = unit_truth(exact, queries, keys, k, units, memory=1)
    columns = judge_units(exact, shared, queries, keys, selection, k)
    per = queries.shape[1] // units
    mean: dict = {}
    for (b, h, i), scores, picked, *_ in rows(problem):
        z = sum(math.exp(0.7 * s) for s in scores.values())
        into, _ = mean.setdefault((b, h // per, i), ({t: 0.0 for t in scores}, picked))
        for t, s in scores.items():
            into[t] += math.exp(0.7 * s) / z / per
    for place, (a, picked) in mean.items():
        ranked = sorted(a.values(), reverse=True)
        m = min(k, len(a))
        hits = min(m, sum(a[t] >= ranked[m - 1] * (1 - 1e-5) for t in picked))
        # Ties of means are ties to rounding alone: allow what float32 cannot tell.
        near = sum(abs(x / ranked[m - 1] - 1) <= 3e-5 for x in ranked)
        assert abs(float(columns["recall"][place]) * m - hits) <= (near if near > 1 else 1e-3)
        assert float(columns["mass"][place]) == pytest.approx(sum(a[t] for t in picked), abs=1e-4)
        assert float(columns["mass_ratio"][place]) == pytest.approx(
            sum(a[t] for t in picked) / sum(ranked[:m]), rel=1e-3, abs=1e-4
        )


def test_the_heaviest_keys_of_a_unit_are_found_however_peaked_its_weights_are():
    torch.manual_seed(0)
    queries, keys = 4 * torch.randn(20, 8, 1, 128), 4 * torch.randn(20, 2, 500, 128)
    scaling = 128**-0.5
    exact = truth(queries, keys, None, 4, scaling=scaling)
    shared = unit_truth(exact, queries, keys, 4, 2)
    scores = queries.double().unflatten(1, (2, 4)) @ keys.double()[:, :, None].mT
    weights = (scaling * scores).softmax(-1).mean(2)
    best = judge_units(exact, shared, queries, keys, Selection(weights.topk(4).indices), 4)
    assert best["top1"].eq(1).all()
    assert best["recall"].eq(1).all()
    ranked = weights.topk(5)
    apart = ranked.values[..., 0] > 1.001 * ranked.values[..., 1]
    worse = judge_units(exact, shared, queries, keys, Selection(ranked.indices[..., 1:]), 4)
    assert apart.any()
    assert worse["top1"][apart].eq(0).all()


def test_all_equal_rows_forgive_every_choice():
    queries, keys = torch.ones(1, 2, 1, 4), torch.ones(1, 1, 30, 4)
    exact = truth(queries, keys, keys, 8, scaling=1.0)
    chosen = Selection(torch.arange(20, 28).view(1, 1, 1, 8))
    columns = judge(exact, queries, keys, keys, chosen, 8)
    assert columns["recall"].eq(1).all()
    assert columns["entropy"].allclose(torch.tensor(math.log(30)))
    assert columns["mass"].allclose(torch.tensor(8 / 30))


def test_rest_joins_the_output_and_the_estimate():
    torch.manual_seed(0)
    queries, keys, values = (
        torch.randn(1, 2, 1, 4),
        torch.randn(1, 1, 12, 4),
        torch.randn(1, 1, 12, 3),
    )
    exact = truth(queries, keys, values, 4, scaling=0.5)
    slots = torch.arange(4).view(1, 1, 1, 4)
    # A pseudo-key that stands exactly for the other eight.
    logits = 0.5 * (queries @ keys[:, :, 4:].mT)
    inside = logits.softmax(-1) @ values[:, :, 4:]
    rest = Rest(values=inside[:, :, :, None], logits=logits.logsumexp(-1, keepdim=True))
    columns = judge(exact, queries, keys, values, Selection(slots, rest=rest), 4)
    assert columns["output_error"].max() < 1e-5
    assert columns["mass_estimate"].allclose(torch.ones(()))
    share = 1 - columns["mass"][..., None]
    rest = Rest(values=inside[:, :, :, None], share=share)
    columns = judge(exact, queries, keys, values, Selection(slots, rest=rest), 4)
    assert columns["output_error"].max() < 1e-5


@pytest.mark.parametrize("which", ["queries", "keys", "values"])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_bad_numbers_are_named(which, bad):
    torch.manual_seed(0)
    tensors: dict[str, Any] = {"queries": torch.randn(1, 4, 2, 3), "keys": torch.randn(1, 2, 9, 3)}
    tensors["values"] = torch.randn(1, 2, 9, 3)
    tensors[which][0, 1, 1, 0] = bad
    head = {"queries": "head 1", "keys": "head 2", "values": "head 2"}[which]
    with pytest.raises(InputError, match=f"layer 3, {head}"):
        truth(**tensors, k=2, scaling=1.0, layer=3)


def test_what_a_query_cannot_see_may_hold_anything():
    torch.manual_seed(0)
    queries, keys = torch.randn(1, 2, 1, 3), torch.randn(1, 2, 9, 3)
    spoilt = torch.cat([torch.full((1, 2, 2, 3), 1e30), keys, torch.full((1, 2, 4, 3), -1e30)], 2)
    a = truth(queries, keys, keys, 3, scaling=1.0)
    b = truth(
        queries, spoilt, spoilt, 3, scaling=1.0, start=torch.tensor([2]), stop=torch.tensor([[11]])
    )
    for name in ("scores", "floors", "lse", "entropy", "output"):
        torch.testing.assert_close(getattr(a, name), getattr(b, name))


def test_chunks_change_nothing_but_memory():
    torch.manual_seed(0)
    queries, keys, values = (
        torch.randn(2, 6, 5, 16),
        torch.randn(2, 2, 777, 16, dtype=torch.bfloat16),
        torch.randn(2, 2, 777, 8, dtype=torch.bfloat16),
    )
    whole = truth(queries, keys, values, 50, scaling=0.25, memory=1 << 30)
    for memory in (1, 60_000, 300_000):
        parts = truth(queries, keys, values, 50, scaling=0.25, memory=memory)
        for name in ("scores", "floors", "lse", "entropy", "output"):
            torch.testing.assert_close(
                getattr(whole, name), getattr(parts, name), rtol=1e-4, atol=1e-5
            )


@pytest.mark.parametrize("lists", [6, 2, 1])
def test_scores_that_are_known_change_nothing(lists):
    torch.manual_seed(0)
    queries, keys = torch.randn(2, 6, 5, 16), torch.randn(2, 2, 77, 16)
    seen: dict[str, Any] = {
        "start": torch.tensor([0, 9]),
        "stop": torch.tensor([[73, 74, 75, 76, 77]]),
    }
    known = score(queries, keys)
    exact = truth(queries, keys, keys, 20, scaling=0.25, scores=known, **seen)
    anew = truth(queries, keys, keys, 20, scaling=0.25, **seen)
    indices = 9 + torch.rand(2, lists, 5, 61).argsort(-1)[..., :8]
    indices[..., 6:] = -1
    chosen = Selection(indices)
    ours = judge(exact, queries, keys, keys, chosen, 8, scores=known)
    theirs = judge(anew, queries, keys, keys, chosen, 8)
    units = [unit_truth(t, queries, keys, 8, lists) for t in (exact, anew)]
    ours |= judge_units(exact, units[0], queries, keys, chosen, 8, scores=known)
    theirs |= judge_units(anew, units[1], queries, keys, chosen, 8)
    for name, column in theirs.items():
        torch.testing.assert_close(ours[name], column, rtol=1e-4, atol=1e-5, equal_nan=True)


@pytest.mark.parametrize("shared", [False, True])
def test_blocks_of_rows_change_nothing(shared: bool):
    torch.manual_seed(0)
    streams = 1 if shared else 4
    queries, keys = torch.randn(4, 6, 3, 16), torch.randn(streams, 2, 50, 16)
    values = torch.randn(streams, 2, 50, 8)
    # Of the first row no query sees as many keys as are ranked.
    seen: dict[str, Any] = {
        "start": torch.tensor([40, 0, 7, 0]),
        "stop": torch.tensor([[45, 46, 47], [48, 49, 50], [30, 40, 50], [3, 2, 1]]),
    }
    known: dict[str, Any] = {"scores": score(queries, keys)}
    whole = truth(queries, keys, values, 9, scaling=0.25, **known, **seen)
    units = unit_truth(whole, queries, keys, 9, 2, **known)
    # Two rows of 6 heads, 3 queries and 50 slots.
    with patch("topkit.kernels.blocks.BLOCK", 2 * 6 * 3 * 50 // torch.get_num_threads()):
        parts = truth(queries, keys, values, 9, scaling=0.25, memory=5000, **known, **seen)
        of_parts = unit_truth(parts, queries, keys, 9, 2, memory=5000, **known)
    for name in ("visible", "scores", "floors", "heaviest", "lse", "entropy", "output"):
        torch.testing.assert_close(getattr(parts, name), getattr(whole, name))
    for name in ("weights", "floors"):
        torch.testing.assert_close(getattr(of_parts, name), getattr(units, name))


def test_overlap_counts_common_slots():
    ours = torch.tensor([[[[1, 5, 9, -1]], [[0, 2, 3, 4]]]])
    theirs = torch.tensor([[[[9, 5, 7, -1]]]])
    assert overlap(ours, theirs).flatten().tolist() == pytest.approx([2 / 3, 0.0])


BROKEN = {
    "slot 6, where its query sees the slots from 1 to 4": [4, 6],
    "slot 5, where its query sees the slots from 1 to 4": [1, 5],
    "slot 0, where its query sees the slots from 1 to 4": [0, 3],
    "slot -2, where its query sees the slots from 1 to 4": [1, -2],
    "slot 3 twice": [3, 3],
    "3 slots, where k is 2": [1, 2, 3],
}


@pytest.mark.parametrize("what", BROKEN)
@pytest.mark.parametrize("lists", [2, 1])
def test_a_list_that_credits_what_it_may_not_is_refused_by_name(what, lists):
    """The first of two queries sees the slots 1 to 4 of 6 keys."""
    queries, keys = torch.ones(1, 2, 2, 4), torch.ones(1, 2, 6, 4)
    exact = truth(queries, keys, None, 2, scaling=1.0, start=torch.tensor([1]))
    indices = torch.tensor([2, 1, -1])[: len(BROKEN[what])].repeat(1, lists, 2, 1)
    right = Selection(indices.clone())
    judge(exact, queries, keys, None, right, 2)
    indices[0, -1, 0] = torch.tensor(BROKEN[what])
    with pytest.raises(InputError, match=f"^mine.* chose {what}, in list {lists - 1} of query 0"):
        judge(exact, queries, keys, None, Selection(indices), 2, name="mine(k=2)")
    units = unit_truth(exact, queries, keys, 2, lists)
    with pytest.raises(InputError, match=f"^mine.* chose {what}, in list {lists - 1} of query 0"):
        judge_units(exact, units, queries, keys, Selection(indices), 2, name="mine(k=2)")
