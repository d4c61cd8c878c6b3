"""HISA, arXiv 2603.28458, section 3: blocks by their mean key, then the best keys of those."""

from __future__ import annotations

import pytest

from plainly import arrays, best, chosen, stream
from topkit.indexers.spec import parse


@pytest.mark.parametrize(
    ("size", "pages", "length", "k"),
    [
        (4, 3, 50, 9),
        (8, 2, 61, 16),
        (1, 7, 40, 5),
        (8, 2, 64, 16),
        (16, 64, 70, 12),
    ],
)
def test_the_best_keys_of_the_best_blocks(size, pages, length, k):
    recipe = parse(f"hisa(page_size={size}, pages={pages})")
    one = stream(recipe, length + k, length)
    queries, keys = arrays(one)
    got = chosen(one, recipe, one.build(recipe, range(length - 5, length + 1)), k)
    for head in range(4):
        query, own = queries[head, -1], keys[head]
        means = [own[first : first + size].mean(0) @ query for first in range(0, length, size)]
        ranked = best(means, len(means))
        keys_of = [min((page + 1) * size, length) - page * size for page in ranked]
        # No list is short of keys for want of blocks, also where the part-full one is among them.
        enough = next(n for n in range(1, len(ranked) + 1) if sum(keys_of[:n]) >= k)
        kept = ranked[: max(pages, enough)]
        among = sorted(
            s for page in kept for s in range(page * size, min((page + 1) * size, length))
        )
        assert got[head] == best(own @ query, k, among)
