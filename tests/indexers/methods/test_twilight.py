"""Twilight, arXiv 2502.02770, section 4: a generous proposal, pruned by the mass of int4 keys."""

from __future__ import annotations

import numpy as np
import pytest

from plainly import LENGTH, WIDTH, arrays, best, chosen, softmax, stream
from topkit.indexers.spec import parse

SCALING = WIDTH**-0.5


def int4(key: np.ndarray) -> np.ndarray:
    low, high = key.min(), key.max()
    scale = (high - low) / 15
    return np.round((key - low) / scale) * scale + low


def by_quest(query: np.ndarray, keys: np.ndarray, count: int, size: int) -> list[int]:
    """Whole pages by their bound, the newest keys of the last page."""
    pages = [list(range(at, min(at + size, len(keys)))) for at in range(0, len(keys), size)]
    bounds = np.array(
        [
            sum(max(q * keys[p, i].min(), q * keys[p, i].max()) for i, q in enumerate(query))
            for p in pages
        ]
    )
    slots = [slot for page in best(bounds, len(pages)) for slot in reversed(pages[page])]
    return slots[:count]


@pytest.mark.parametrize("base", ["exact", "quest"])
@pytest.mark.parametrize(("mass", "share", "k"), [(0.85, 0.25, 40), (0.6, 0.5, 40), (0.9, 1.0, 5)])
@pytest.mark.parametrize("seed", range(3))
def test_what_holds_the_mass_of_the_proposal(base, mass, share, k, seed):
    inner = "exact()" if base == "exact" else "quest(page_size=4)"
    recipe = parse(f"twilight({inner}, mass={mass}, candidates={share})")
    one = stream(recipe, seed)
    queries, keys = arrays(one)
    got = chosen(one, recipe, one.build(recipe), k)
    for head in range(4):
        query, proposed = queries[head, -1], int(share * LENGTH)
        if base == "exact":
            slots = best(keys[head] @ query, proposed)
        else:
            slots = by_quest(query, keys[head], proposed, 4)
        scores = np.array([int4(key) @ query for key in keys[head]])
        order = best(scores, proposed, slots)
        weights = softmax(SCALING * scores[order])
        kept, held = [], 0.0
        for slot, weight in zip(order, weights, strict=True):
            if held >= mass:
                break
            kept.append(slot)
            held += weight
        assert sorted(got[head]) == sorted(kept[:k])
