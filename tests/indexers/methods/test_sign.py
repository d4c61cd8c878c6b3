"""Signs of keys in the place of keys: one bit a dimension, of a float query (arXiv 2603.14224, without its codebook)."""

from __future__ import annotations

import math

import numpy as np
import pytest

from plainly import Arrays, arrays, best, chosen, stream
from topkit.indexers.spec import parse

LENGTH, BUILT = 40, 30


def hadamard(width: int) -> Arrays:
    """Of entry (i, j) the sign is that of the number of bits that i and j both have."""
    signs = [[(-1) ** (i & j).bit_count() for j in range(width)] for i in range(width)]
    return np.array(signs) / math.sqrt(width)


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("center", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_the_best_by_sums_of_a_querys_numbers_with_the_signs_of_a_key(seed, center, turned):
    recipe = parse(f"sign(center={center}, hadamard={turned})")
    one = stream(recipe, seed)
    one.keys[:, :, 3] = 0  # counts as positive
    queries, keys = arrays(one)
    got = chosen(one, recipe, one.build(recipe, [BUILT, LENGTH]), 6)
    width = keys.shape[-1]
    turn = hadamard(width) if turned else np.eye(width)
    for head in range(4):
        mean = keys[head, :BUILT].mean(0) if center else 0
        query = queries[head, -1] @ turn
        scores = []
        for key in keys[head]:
            score = 0.0
            for number, own in zip(query, (key - mean) @ turn, strict=True):
                score += number if own >= 0 else -number
            scores.append(score)
        assert got[head] == best(scores, 6), f"head {head}"
