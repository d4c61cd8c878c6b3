"""MISA, arXiv 2605.07363, section 3: some of lightning's heads, by a router over pooled keys."""

from __future__ import annotations

import numpy as np
import pytest

from plainly import LENGTH, WIDTH, best, chosen, stream
from topkit.indexers.spec import parse


@pytest.mark.parametrize(
    ("heads", "block", "candidates"), [(2, 8, 0), (1, 4, 0), (3, 16, 12), (1, 7, 9), (4, 8, 0)]
)
@pytest.mark.parametrize("seed", range(3))
def test_the_heads_that_matter_to_the_blocks(heads, block, candidates, seed):
    recipe = parse(f"misa(weights='given', heads={heads}, block={block}, candidates={candidates})")
    one = stream(recipe, seed)
    keys = one.vectors["index_keys"][0, 0].double().numpy()
    queries = one.vectors["index_queries"][0, :, -1].double().numpy()
    gates = one.tokens["index_weights"][0, -1].double().numpy()
    pooled = [keys[at : at + block].mean(0) for at in range(0, LENGTH, block)]
    use = np.array(
        [
            np.mean([abs(gate * max(0.0, query @ key)) for key in pooled])
            for query, gate in zip(queries, gates, strict=True)
        ]
    )
    routed = best(use, heads)

    def scores(some: list[int]) -> np.ndarray:
        each = [gates[j] * np.maximum(keys @ queries[j], 0) for j in some]
        return np.sum(each, 0) * (len(queries) * WIDTH) ** -0.5

    for k in (3, 8):
        want = best(scores(routed), candidates or k)
        if candidates:
            want = best(scores(list(range(4))), k, want)
        got = chosen(one, recipe, one.build(recipe), k)
        assert [sorted(slots) for slots in got] == [sorted(want)]
