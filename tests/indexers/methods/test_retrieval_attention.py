"""RetrievalAttention, arXiv 2409.10516, section 3.2: a graph of keys, linked by the prompt's queries."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from plainly import HEADS, arrays, best, chosen, stream
from topkit.contract.draw import RANDOM
from topkit.indexers.spec import parse


@pytest.mark.parametrize("spec", ["retrieval_attention()", "retrieval_attention(ef=40)"])
@pytest.mark.parametrize("prompt", [25, 40])
def test_a_walk_that_holds_all_keys_is_exact(spec, prompt):
    recipe = parse(spec)
    one = stream(recipe, 1)
    queries, keys = arrays(one)
    got = chosen(one, recipe, one.build(recipe, sorted({prompt, 40})), 6)
    assert got == [best(keys[h] @ queries[h, -1], 6) for h in range(4)]


def test_a_walk_sees_few_keys_and_comes_to_the_best():
    """Recall of a slow exhaustive search, on queries like those of the prompt."""
    recipe = parse("retrieval_attention(degree=16, nearest=32, ef=48)")
    one = RANDOM(recipe, length=600, rows=1, heads=HEADS, seed=2)
    index = one.build(recipe)
    hits, seen = [], []
    queries, keys = arrays(one)
    for token in range(560, 600, 4):
        step = one.step(recipe, torch.tensor([token]), 600)
        selection = index.select(one.queries[:, :, [token]], 8, step)
        seen.append(float(torch.as_tensor(selection.keys_scored).mean()))
        for head, slots in enumerate(selection.indices[0, :, 0].tolist()):
            truth = best(keys[head] @ queries[head, token], 8)
            hits.append(len(set(slots) & set(truth)) / 8)
            scores = keys[head][slots] @ queries[head, token]
            assert (np.diff(scores) <= 1e-5).all()  # best first
    assert np.mean(hits) > 0.6 and np.mean(seen) < 300, (np.mean(hits), np.mean(seen))


def test_keys_since_the_prompt_are_never_missed():
    recipe = parse("retrieval_attention(degree=4, nearest=8, ef=6)")
    one = RANDOM(recipe, length=220, rows=1, heads=HEADS, seed=3)
    got = chosen(one, recipe, one.build(recipe, [200, 220]), 6)
    queries, keys = arrays(one)
    for head in range(4):
        truth = best(keys[head] @ queries[head, -1], 6)
        assert {slot for slot in truth if slot >= 200} <= set(got[head])
