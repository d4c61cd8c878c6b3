"""Ada-KV against loops over heads and keys."""

from __future__ import annotations

import itertools
import math

import pytest

from plainly import best
from topkit.contract.draw import RANDOM
from topkit.errors import InputError
from topkit.indexers.spec import parse


def slowly(queries, keys, scaling, k, part, safeguard):
    """Of one query, the keys that each head keeps, the heaviest first."""
    heads, group = len(queries), len(queries) // len(keys)
    lists = []
    for head in range(heads):
        scores = (keys[head // group] @ queries[head]).tolist()
        total = sum(math.exp(scaling * s) for s in scores)
        lists.append([(math.exp(scaling * scores[slot]) / total, slot) for slot in best(scores, k)])
    mean = math.ceil(part * k)
    safe = math.ceil(safeguard * mean)
    kept = [one[:safe] for one in lists]
    others = [(weight, head) for head, one in enumerate(lists) for weight, _ in one[safe:]]
    others.sort(key=lambda one: -one[0])
    left = min(mean, len(lists[0])) * heads - sum(map(len, kept))
    for _, head in others[:left]:
        kept[head] = lists[head][: len(kept[head]) + 1]
    return [[slot for _, slot in one] for one in kept]


@pytest.mark.parametrize(
    ("k", "part", "safeguard"), [(8, 0.5, 0.2), (8, 0.5, 0.0), (5, 1.0, 0.3), (40, 0.1, 1.0), (9, 0.3, 0.5)]
)  # fmt: skip
def test_keeps_what_a_loop_keeps(k, part, safeguard):
    recipe = parse(f"adakv(part={part}, safeguard={safeguard})")
    one = RANDOM(recipe, length=30, heads=(6, 2))
    index, last = one.build(recipe), slice(29, 30)
    step = one.step(recipe, last, 30)
    chosen = index.select(4 * one.queries[:, :, last], k, step).indices
    sizes = set()
    for row, head in itertools.product(range(2), range(6)):
        want = slowly(4 * one.queries[row, :, 29], one.keys[row], step.scaling, k, part, safeguard)
        got = chosen[row, head, 0]
        assert got[got >= 0].tolist() == want[head]
        sizes.add(len(want[head]))
    assert len(sizes) > 1 or part == 1 or safeguard == 1


def test_the_layer_keeps_its_budget_and_each_head_its_safeguard():
    recipe = parse("adakv(part=0.25, safeguard=0.5)")
    one = RANDOM(recipe, length=60, heads=(4, 2))
    index = one.build(recipe)
    kept = (one.ask(recipe, index, 16).indices >= 0).sum(-1)
    assert kept.sum(1).tolist() == [[16], [16]] and kept.min() >= 2 and kept.max() <= 16


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("adakv(part=0)", "part must be above 0"),
        ("adakv(part=2)", "part"),
        ("adakv(safeguard=-1)", "safeguard"),
        ("adakv(faiss_ivf())", "reads a score for every key"),
    ],
)
def test_bad_parameters_are_refused(spec, said):
    with pytest.raises(InputError, match=said):
        parse(spec)
