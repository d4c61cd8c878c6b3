"""InfLLM, arXiv 2402.04617, section 3.2: blocks by the keys that the tokens behind them looked at most."""

from __future__ import annotations

import numpy as np
import pytest

from plainly import arrays, best, chosen, of_pages, stream
from topkit.indexers.spec import parse


def block_scores(queries, keys, size, count, local, known):
    """The mean dot product of the last query with each block's representatives.

    Equation 1: a key's weight is the mean dot product with the queries of the next `local` tokens; where none of
    those is known, with all known ones.
    """
    scores = []
    for first in range(0, len(keys), size):
        block = range(first, min(first + size, len(keys)))
        weights = []
        for key in block:
            after = queries[key + 1 : min(key + 1 + local, known)]
            after = after if len(after) else queries[:known]
            weights.append(np.mean([query @ keys[key] for query in after]))
        chosen_keys = [block[place] for place in best(weights, count)]
        scores.append(np.mean([queries[-1] @ keys[key] for key in chosen_keys]))
    return scores


@pytest.mark.parametrize(
    ("size", "count", "local", "length", "k"),
    [(4, 2, 4096, 50, 12), (8, 3, 5, 64, 20), (8, 4, 16, 61, 13), (16, 1, 9, 70, 32)],
)
def test_blocks_are_those_of_the_best_representatives(size, count, local, length, k):
    recipe = parse(f"infllm(page_size={size}, representatives={count}, local={local})")
    one = stream(recipe, length + k, length)
    queries, keys = arrays(one)
    got = chosen(one, recipe, one.build(recipe), k)
    for head in range(4):
        scores = block_scores(queries[head], keys[head], size, count, local, length)
        assert sorted(got[head]) == of_pages(scores, size, length, k)


def test_keys_that_came_later_are_weighed_by_the_prompts_queries():
    recipe = parse("infllm(page_size=8, representatives=2, local=6)")
    one = stream(recipe, 3, 48)
    queries, keys = arrays(one)
    got = chosen(one, recipe, one.build(recipe, range(40, 49)), 16)
    for head in range(4):
        scores = block_scores(queries[head], keys[head], 8, 2, 6, 40)
        assert sorted(got[head]) == of_pages(scores, 8, 48, 16)
