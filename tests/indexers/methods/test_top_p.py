"""Top-p of Twilight, arXiv 2502.02770, section 3: the fewest keys whose softmax weights sum to p."""

from __future__ import annotations

import math

import numpy as np
import pytest

from plainly import WIDTH, arrays, best, chosen, stream, uneven
from topkit.contract.draw import RANDOM
from topkit.indexers.spec import parse

SCALING = WIDTH**-0.5


def nucleus(scores, mass, k):
    """The best keys, one after the other, until their weights hold the mass; k at most."""
    greatest = max(scores)
    weights = [math.exp(SCALING * (score - greatest)) for score in scores]
    kept, held = list[int](), 0.0
    for slot in best(scores):
        if held >= mass * sum(weights) or len(kept) == k:
            break
        kept.append(slot)
        held += weights[slot]
    return kept


def dot(query, keys):
    return [sum(a * b for a, b in zip(query, key, strict=True)) for key in keys]


@pytest.mark.parametrize("mass", [0.05, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("k", [3, 11, 100])
@pytest.mark.parametrize("heads", [(4, 2), (3, 1)])
def test_the_fewest_that_hold_the_mass(mass, k, heads):
    recipe = parse(f"top_p(mass={mass})")
    one = RANDOM(recipe, length=47, rows=1, heads=heads, seed=k)
    queries, keys = arrays(one)
    got = chosen(one, recipe, one.build(recipe), k)
    assert len(got) == heads[0]
    for head, slots in enumerate(got):
        assert slots == nucleus(dot(queries[head, -1], keys[head]), mass, k)


@pytest.mark.parametrize("mass", [0.3, 0.8])
def test_by_what_the_base_scores(mass):
    """Of `sign`, the query's products with the keys' signs: zero is positive."""
    recipe, otherwise = parse(f"top_p(sign(), mass={mass})"), 0
    for seed in range(3):
        one = uneven(recipe, seed)
        queries, keys = arrays(one)
        got = chosen(one, recipe, one.build(recipe), 30)
        for head in range(4):
            query = queries[head, -1]
            signs = np.where(keys[head] >= 0, 1, -1)
            assert got[head] == nucleus(dot(query, signs), mass, 30)
            otherwise += got[head] != nucleus(dot(query, keys[head]), mass, 30)
    assert otherwise


@pytest.mark.parametrize("k", [4, 40])
def test_of_equal_weights_the_lowest_slot_comes_first(k):
    recipe = parse("top_p(mass=0.4)")
    tied = 0
    for seed in range(5):
        one = RANDOM(recipe, length=29, rows=1, heads=(4, 2), seed=seed, whole=True)
        queries, keys = arrays(one)
        for head, slots in enumerate(chosen(one, recipe, one.build(recipe), k)):
            scores = dot(queries[head, -1], keys[head])
            assert slots == nucleus(scores, 0.4, k)
            tied += scores[slots[-1]] in [scores[slot] for slot in set(range(29)) - set(slots)]
    assert tied  # otherwise no two tied at the cut


def test_only_what_a_query_sees_has_weight():
    recipe = parse("top_p(mass=0.7)")
    starts = (0, 6, 27)
    one = RANDOM(recipe, length=28, start=starts, seed=3)
    got = one.ask(recipe, one.build(recipe, [9, 28]), 20, 2).indices
    for row, first in enumerate(starts):
        queries, keys = one.queries[row].double().numpy(), one.keys[row].double().numpy()
        for head in range(4):
            for query, stop in ((26, 27), (27, 28)):
                seen = keys[head // 2, first:stop]
                want = nucleus(dot(queries[head, query], seen), 0.7, 20) if len(seen) else []
                slots = got[row, head, query - 26].tolist()
                assert [slot - first for slot in slots if slot >= 0] == want


def test_keys_that_come_one_by_one():
    recipe = parse("top_p(mass=0.6)")
    one = stream(recipe, 2, 30)
    queries, keys = arrays(one)
    index = one.build(recipe, [1])
    for length in range(2, 31):
        one.append(recipe, index, length)
        for head, slots in enumerate(chosen(one, recipe, index, 8)):
            assert slots == nucleus(dot(queries[head, length - 1], keys[head, :length]), 0.6, 8)


def test_another_mass_or_scaling_chooses_otherwise():
    recipe = parse("top_p(mass=0.6)")
    one = stream(recipe, 1)
    queries, keys = arrays(one)
    (got, *_) = chosen(one, recipe, one.build(recipe), 40)
    scores = dot(queries[0, -1], keys[0])
    assert got == nucleus(scores, 0.6, 40)
    assert got not in [nucleus(scores, mass, 40) for mass in (0.5, 0.7)]
    assert got != nucleus([score / SCALING for score in scores], 0.6, 40)
