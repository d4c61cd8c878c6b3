"""InfLLM, arXiv 2402.04617, section 3.2: blocks by the keys that the tokens behind them looked at most."""

from __future__ import annotations

import numpy as np
import pytest

from plainly import best, chosen, drawn, lists, of_pages


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
    queries, keys, values = drawn(length + k, length)
    spec = f"infllm(page_size={size}, representatives={count}, local={local})"
    found = chosen(spec, queries, keys, values, k)
    for head, got in enumerate(lists(found, 4)):
        scores = block_scores(queries[head], keys[head // 2], size, count, local, length)
        assert sorted(got) == of_pages(scores, size, length, k)


def test_keys_that_came_later_are_weighed_by_the_prompts_queries():
    queries, keys, values = drawn(3, 48)
    spec = "infllm(page_size=8, representatives=2, local=6)"
    found = chosen(spec, queries, keys, values, 16, built=40)
    for head, got in enumerate(lists(found, 4)):
        scores = block_scores(queries[head], keys[head // 2], 8, 2, 6, 40)
        assert sorted(got) == of_pages(scores, 8, 48, 16)
