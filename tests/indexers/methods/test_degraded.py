"""The controlled-precision study of arXiv 2512.03494: exact Top-k that loses a share of its keys."""

from __future__ import annotations

import pytest

from plainly import LENGTH, arrays, best, chosen, stream
from topkit.contract.draw import RANDOM
from topkit.indexers.spec import parse


def rendered(scores, k, lost, miss, fill):
    """The exact list without `lost` of its keys, and what is taken from below it in their places."""
    order = best(scores)
    top, below = order[:k], order[k:]
    gone = {
        "boundary": top[k - lost :],  # the lowest scores
        "heavy": top[:lost],  # the highest
        "recent": sorted(top)[k - lost :],  # the newest
    }[miss]
    instead = {"next": below, "recent": sorted(below, reverse=True), "none": []}[fill]
    return sorted([slot for slot in top if slot not in gone] + instead[:lost])


@pytest.mark.parametrize("miss", ["boundary", "heavy", "recent"])
@pytest.mark.parametrize("fill", ["next", "recent", "none"])
@pytest.mark.parametrize("heads", [(4, 2), (3, 1)])
def test_what_is_lost_and_what_takes_its_place(miss, fill, heads):
    for precision, k, lost in [(0.75, 8, 2), (0.5, 12, 6), (0.9, 10, 1), (1.0, 7, 0), (0.0, 5, 5)]:
        recipe = parse(f"degraded({precision}, miss={miss}, fill={fill})")
        one = RANDOM(recipe, length=37, rows=1, heads=heads, seed=k)
        queries, keys = arrays(one)
        got = chosen(one, recipe, one.build(recipe, [20, 37]), k)
        assert len(got) == heads[0]
        for head, slots in enumerate(got):
            scores = keys[head] @ queries[head, -1]
            assert sorted(slots) == rendered(scores, k, lost, miss, fill)
            if lost:
                assert sorted(slots) != rendered(scores, k, lost - 1, miss, fill)


@pytest.mark.parametrize("miss", ["uniform", "page"])
@pytest.mark.parametrize("fill", ["uniform", "next", "recent", "none"])
def test_a_drawn_loss_is_of_as_many_keys(miss, fill):
    recipe, losses = parse(f"degraded(0.7, miss={miss}, fill={fill})"), list[frozenset[int]]()
    one = stream(recipe, 1)
    queries, keys = arrays(one)
    index = one.build(recipe, [11])
    for length in range(11, LENGTH + 1):
        if length > 11:
            one.append(recipe, index, length)
        for head, slots in enumerate(chosen(one, recipe, index, 7)):
            scores = keys[head, :length] @ queries[head, length - 1]
            top, others = best(scores, 7), best(scores)[7:]
            lost, new = set(top) - set(slots), set(slots) - set(top)
            assert len(slots) == len(set(slots))
            assert 2 <= len(lost) <= 3  # 0.3 * 7 = 2.1
            assert len(new) == (0 if fill == "none" else len(lost))
            if fill in ("next", "recent"):
                order = others if fill == "next" else sorted(others, reverse=True)
                assert new == set(order[: len(lost)])
            losses.append(frozenset(top.index(slot) for slot in lost))
    assert len(set(losses)) > 10
    assert abs(sum(map(len, losses)) / len(losses) - 2.1) < 0.13
