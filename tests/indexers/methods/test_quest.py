"""Quest, arXiv 2406.10774, section 3.2: pages by the bound of their scores, at least so many of them."""

from __future__ import annotations

import pytest

from plainly import arrays, best, chosen, of_pages, stream
from topkit.indexers.spec import parse


def bounds(query, keys, size):
    """sum_i max(q_i low_i, q_i high_i) of each page."""
    found = []
    for first in range(0, len(keys), size):
        page = keys[first : first + size]
        low, high = page.min(0), page.max(0)
        found.append(sum(max(q * a, q * b) for q, a, b in zip(query, low, high, strict=True)))
    return found


@pytest.mark.parametrize(
    ("size", "length", "k"), [(4, 50, 12), (8, 61, 13), (1, 30, 9), (16, 70, 5)]
)
def test_pages_are_those_of_the_greatest_bounds(size, length, k):
    recipe = parse(f"quest(page_size={size})")
    one = stream(recipe, size, length)
    queries, keys = arrays(one)
    got = chosen(one, recipe, one.build(recipe, range(length - 7, length + 1)), k)
    for head in range(4):
        scores = bounds(queries[head, -1], keys[head], size)
        assert sorted(got[head]) == of_pages(scores, size, length, k)


@pytest.mark.parametrize(("k", "least"), [(5, 3), (2, 3), (9, 4), (3, 3), (30, 3), (16, 3)])
def test_at_least_so_many_pages_are_read_and_their_newest_keys_kept(k, least):
    size, length = 8, 64
    recipe = parse(f"quest(page_size={size}, min_pages={least})")
    one = stream(recipe, k, length)
    queries, keys = arrays(one)
    for head, got in enumerate(chosen(one, recipe, one.build(recipe), k)):
        scores = bounds(queries[head, -1], keys[head], size)
        wanted = best(scores, min(k, max(least, -(-k // size))))
        assert len(got) == k and {slot // size for slot in got} == set(wanted)
        counts = [sum(slot // size == page for slot in got) for page in wanted]
        if k < least * size - size:
            assert max(counts) - min(counts) <= 1
        for page, count in zip(wanted, counts, strict=True):
            newest = range((page + 1) * size - count, (page + 1) * size)
            assert [slot for slot in sorted(got) if slot // size == page] == list(newest)
