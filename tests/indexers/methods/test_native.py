"""DeepSeek sparse attention's own lists, arXiv 2512.02556, section 2.1: the best index scores, cut to k."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from plainly import best
from topkit.contract.draw import RANDOM
from topkit.indexers.spec import parse

LENGTH, TOPK = 30, 12


def index_scores(one, row, token):
    """I(t, s) = sum_j w(t, j) ReLU(q(t, j) . k(s)) of all slots, of the row's index queries and keys."""
    keys = one.vectors["index_keys"][row, 0].double().numpy()
    scores = np.zeros(len(keys))
    for j, gate in enumerate(one.tokens["index_weights"][row, token].double().numpy()):
        query = one.vectors["index_queries"][row, j, token].double().numpy()
        scores += [gate * max(0.0, float(query @ key)) for key in keys]
    return scores


def listed(one, row, token, first):
    """What the model lists: the best that the token sees, then slots that it does not, which are masked, or -1."""
    scores = index_scores(one, row, token)
    hidden = [slot for slot in range(LENGTH) if not first <= slot <= token]
    seen = best(scores, TOPK, range(first, token + 1))
    return (seen + hidden[::-1] + [-1] * TOPK)[:TOPK]


def asked(one, k, count, lists):
    recipe = parse("native()")
    index = recipe.build(one.keys, one.step(recipe, slice(0, LENGTH), LENGTH, call="build"))
    tokens = slice(LENGTH - count, LENGTH)
    step = one.step(recipe, tokens, LENGTH)
    step = replace(step, inputs={**step.inputs, "native": torch.tensor(lists)})
    return index.select(one.queries[:, :, tokens], k, step).indices


@pytest.mark.parametrize("k", [1, 5, TOPK, 40])
@pytest.mark.parametrize("heads", [(4, 2), (3, 1)])
@pytest.mark.parametrize("whole", [False, True])
def test_the_best_of_the_model_s_list_that_are_seen(k, heads, whole):
    start, count = (0, 9, 23), 6
    one = RANDOM(parse("native()"), length=LENGTH, heads=heads, start=start, seed=k, whole=whole)
    tokens = range(LENGTH - count, LENGTH)
    given = [[listed(one, row, t, first) for t in tokens] for row, first in enumerate(start)]
    got = asked(one, k, count, given)
    assert got.shape[1] == 1
    short = 0
    for row, first in enumerate(start):
        for query, token in enumerate(tokens):
            want = best(index_scores(one, row, token), min(k, TOPK), range(first, token + 1))
            slots = got[row, 0, query].tolist()
            assert slots == want + [-1] * (len(slots) - len(want))
            short += len(want) < min(k, TOPK)
    assert short or k == 1  # otherwise no list held what its token does not see


def test_it_chooses_by_the_list_alone():
    one = RANDOM(parse("native()"), length=LENGTH, rows=1, seed=1)
    scores = index_scores(one, 0, LENGTH - 1)
    worst_first = best(scores)[TOPK - 1 :: -1]
    assert asked(one, 5, 1, [[worst_first]])[0, 0, 0].tolist() == worst_first[:5] != best(scores, 5)
