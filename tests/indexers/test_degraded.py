"""The controlled-precision oracle: what it loses, what it puts there, and for how long."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from plainly import best
from topkit.indexers import Cache, Step, degraded

MISSES = ("uniform", "boundary", "heavy", "recent", "page")
FILLS = ("uniform", "next", "recent", "none")
LENGTH, K, STEPS, HEADS, GROUPS = 600, 20, 6, 4, 2


def tensors(seed=0, whole=False):
    g = torch.Generator().manual_seed(seed)
    queries = torch.randn(1, HEADS, STEPS, 16, generator=g)
    keys = torch.randn(1, GROUPS, LENGTH, 16, generator=g)
    return (queries.round(), keys.round().clamp(-1, 1)) if whole else (queries, keys)


def rows(recipe, queries, keys, k=K, seed=0, layer=0):
    """(head, query, scores of the visible keys, chosen slots) for each head and query."""
    step = Step(layer=layer, seed=seed, kv_heads=GROUPS, inputs={"cache": Cache(keys)}).given_to(
        recipe
    )
    selection = recipe.build(keys, step).select(queries, k, step)
    for head, query in itertools.product(range(HEADS), range(STEPS)):
        stop = LENGTH - STEPS + 1 + query
        scores = keys[0, head * GROUPS // HEADS, :stop].double() @ queries[0, head, query].double()
        yield (
            head,
            query,
            scores.tolist(),
            [s for s in selection.indices[0, head, query].tolist() if s >= 0],
        )


def recall(scores, slots, k=K):
    """As fidelity counts it: keys no less than the k-th, but for a millionth of the largest."""
    least = sorted(scores)[-k] - 1e-6 * max(map(abs, scores))
    return min(k, sum(scores[s] >= least for s in slots)) / k


@pytest.mark.parametrize("fill", FILLS)
@pytest.mark.parametrize("miss", MISSES)
def test_a_loss_of_one_step_and_head_takes_floor_or_ceil_of_its_share(miss, fill):
    precision = 0.63  # 7.4 of 20 keys
    found = []
    for seed in range(10):
        queries, keys = tensors(seed)
        recipe = degraded(precision, miss, fill)
        for _, _, scores, slots in rows(recipe, queries, keys, seed=seed):
            kept = recall(scores, slots) * K
            assert round(kept) in (12, 13)
            assert len(slots) == (K if fill != "none" else round(kept)) == len(set(slots))
            found.append(kept == 12)
    mean, deviation = sum(found) / len(found), math.sqrt(0.4 * 0.6 / len(found))
    assert abs(mean - 0.4) < 4.5 * deviation


@pytest.mark.parametrize("fill", ["next", "none"])
@pytest.mark.parametrize("per", ["head", "group", "layer"])
@pytest.mark.parametrize("persist", ["step", "stream"])
@pytest.mark.parametrize("miss", MISSES)
def test_mean_achieved_recall_is_the_precision(miss, persist, per, fill):
    precision, seeds = 0.7, 15
    found = []
    for seed in range(seeds):
        queries, keys = tensors(seed)
        recipe = degraded(precision, miss, fill, persist, per)
        found += [recall(x, slots) for _, _, x, slots in rows(recipe, queries, keys, seed=seed)]
    # Draws that are independent: one a seed for each key (or page) that any row could lose.
    independent = min(len(found) * K, seeds * LENGTH)
    if miss == "page":
        independent /= 16
    deviation = math.sqrt(precision * (1 - precision) / independent)
    assert abs(sum(found) / len(found) - precision) < 4.5 * 1.5 * deviation


@pytest.mark.parametrize("miss", ["boundary", "heavy", "recent"])
def test_which_keys_go_first(miss):
    queries, keys = tensors()
    for _, _, scores, slots in rows(degraded(0.5, miss, "none"), queries, keys):
        heaviest = best(scores, K)
        first, last, earliest = heaviest[:10], heaviest[10:], sorted(heaviest)[:10]
        want = {"boundary": first, "heavy": last, "recent": earliest}[miss]
        assert slots == [s for s in heaviest if s in want]


def test_uniform_loses_every_rank_equally_often():
    counts = torch.zeros(K)
    for seed in range(60):
        queries, keys = tensors(seed)
        for _, _, scores, slots in rows(degraded(0.5, "uniform", "none"), queries, keys, seed=seed):
            counts += torch.tensor([s in slots for s in best(scores, K)])
    trials = 60 * HEADS * STEPS
    assert ((counts - trials / 2).abs() < 4.5 * math.sqrt(trials / 4)).all()


def test_page_loses_neighbours_together():
    together = {"page": [], "uniform": []}
    for miss, seen in together.items():
        for seed in range(30):
            queries, keys = tensors(seed)
            for _, _, scores, slots in rows(degraded(0.5, miss, "none"), queries, keys, seed=seed):
                lost = {s: s not in slots for s in best(scores, K)}
                seen += [
                    lost[a] == lost[b]
                    for a, b in itertools.combinations(lost, 2)
                    if a // 16 == b // 16
                ]
    share = {miss: sum(seen) / len(seen) for miss, seen in together.items()}
    assert share["page"] > 0.9 and share["uniform"] < 0.55


@pytest.mark.parametrize("fill", FILLS)
def test_what_takes_the_place_of_the_lost(fill):
    queries, keys = tensors()
    fillers = []
    for _, _, scores, slots in rows(degraded(0.6, "uniform", fill), queries, keys):
        heaviest = best(scores, K)
        others = [s for s in slots if s not in heaviest]
        below = sorted(set(range(len(scores))) - set(heaviest), key=lambda s: -scores[s])
        assert slots[: K - 8] == [s for s in heaviest if s in slots]  # best first, fillers last
        if fill == "next":
            assert others == below[:8]
        elif fill == "recent":
            assert others == sorted(below, reverse=True)[:8]
        elif fill == "none":
            assert not others
        else:
            assert len(others) == 8
            fillers += [below.index(s) / len(below) for s in others]
    if fillers:
        mean = sum(fillers) / len(fillers)
        assert abs(mean - 0.5) < 4.5 * math.sqrt(1 / 12 / len(fillers))


@pytest.mark.slow
@pytest.mark.parametrize("miss", ["uniform", "page"])
@pytest.mark.parametrize("per", ["head", "group", "layer"])
@pytest.mark.parametrize("persist", ["step", "stream"])
def test_how_far_one_loss_reaches(persist, per, miss):
    """For each key, every row that its loss reaches agrees; and rows that it does not reach differ."""
    base, keys = tensors()
    # All queries of a group alike but for a little, so that rows share most of their best keys.
    queries = base[:, :1, :1] + 0.1 * base
    keys = keys[:, :1].expand(-1, GROUPS, -1, -1)
    fate: dict[tuple, set[bool]] = {}
    for layer, seed in itertools.product(range(4), range(4)):
        found = rows(
            degraded(0.5, miss, "none", persist, per), queries, keys, seed=seed, layer=layer
        )
        for head, query, scores, slots in found:
            who = {"head": head, "group": head // 2, "layer": 0}[per]
            when = query if persist == "step" else 0
            for s in best(scores, K):
                fate.setdefault((layer, seed, s, who, when), set()).add(s in slots)
    assert all(len(fates) == 1 for fates in fate.values())
    # Two units, times, layers or seeds decide apart: about half of the keys end otherwise.
    pairs = [
        fate[a] != fate[b]
        for a, b in itertools.combinations(fate, 2)
        if a[2] == b[2] and sum(x != y for x, y in zip(a, b, strict=True)) == 1
    ]
    assert 0.35 < sum(pairs) / len(pairs) < 0.65


@pytest.mark.parametrize("persist", ["step", "stream"])
@pytest.mark.parametrize("miss", MISSES)
def test_ties_at_the_boundary_neither_add_nor_cost_recall(miss, persist):
    queries, keys = tensors(whole=True)
    for fill in FILLS:
        recipe = degraded(0.5, miss, fill, persist)
        bare = degraded(0.5, miss, "none", persist)
        pairs = zip(rows(recipe, queries, keys), rows(bare, queries, keys), strict=True)
        for (_, _, scores, slots), (_, _, _, kept) in pairs:
            assert recall(scores, slots) == len(kept) / K


def test_rows_of_equal_keys_have_nothing_to_fill_with():
    queries, keys = torch.ones(1, HEADS, STEPS, 16), torch.ones(1, GROUPS, LENGTH, 16)
    for _, _, scores, slots in rows(degraded(0.5, "boundary", "next"), queries, keys):
        assert slots == best(scores, K)[:10]


@pytest.mark.parametrize("precision", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("persist", ["step", "stream"])
def test_a_budget_that_covers_all_keeps_all(precision, persist):
    queries, keys = tensors()
    for _, _, scores, slots in rows(
        degraded(precision, persist=persist), queries, keys, k=LENGTH - 2
    ):
        if len(scores) <= LENGTH - 2:
            assert sorted(slots) == list(range(len(scores)))


def test_the_ends_of_the_scale():
    queries, keys = tensors()
    for persist in ("step", "stream"):
        for _, _, scores, slots in rows(degraded(1, persist=persist), queries, keys):
            assert slots == best(scores, K)
        for _, _, scores, slots in rows(degraded(0.0, persist=persist), queries, keys):
            assert recall(scores, slots) == 0 and len(slots) == K


def test_a_share_that_is_whole_is_not_split_by_float_error():
    queries, keys = tensors()
    kept = {len(slots) for *_, slots in rows(degraded(0.9, fill="none"), queries, keys)}
    assert kept == {18}
