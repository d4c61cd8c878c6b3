"""H2O, arXiv 2306.14048, algorithm 1: the newest keys, the heaviest hitters, and eviction for good."""

from __future__ import annotations

import numpy as np
import pytest

from plainly import LENGTH, WIDTH, arrays, best, chosen, softmax, stream
from topkit.indexers.spec import parse

PROMPT = 8


@pytest.mark.parametrize(("share", "k"), [(0.5, 6), (0.25, 8), (0.5, 20)])
@pytest.mark.parametrize("seed", range(2))
def test_what_stays_step_by_step(share, k, seed):
    recipe = parse(f"h2o(recent={share})")
    one = stream(recipe, seed)
    queries, keys = arrays(one)
    index = one.build(recipe, [PROMPT])
    heavy = np.zeros((4, LENGTH))
    for head in range(4):
        for at in range(PROMPT):
            weights = softmax(keys[head, : at + 1] @ queries[head, at] * WIDTH**-0.5)
            heavy[head, : at + 1] += weights
    there = [list(range(PROMPT)) for _ in range(4)]
    for at in range(PROMPT, LENGTH):
        one.append(recipe, index, at + 1)
        got = chosen(one, recipe, index, k)
        for head in range(4):
            slots = [*there[head], at]
            recent = slots[-int(share * k) :]
            others = [slot for slot in slots if slot not in recent]
            kept = sorted(recent + best(heavy[head], k - len(recent), others))
            assert sorted(got[head]) == kept, f"token {at}, head {head}"
            heavy[head, kept] += softmax(keys[head, kept] @ queries[head, at] * WIDTH**-0.5)
            there[head] = kept
