"""MoBA, arXiv 2502.13189, section 2.2: the query's own block, then blocks by the product with their mean key."""

from __future__ import annotations

from fractions import Fraction

import pytest

from plainly import arrays, best, chosen, lists, stream
from topkit.contract.draw import RANDOM
from topkit.indexers.spec import parse


def product(query, page):
    """q . mean(keys), rounded once, so that equal blocks are equal."""
    mean = [sum(map(Fraction, column)) / len(page) for column in zip(*page, strict=True)]
    return float(sum(Fraction(q) * m for q, m in zip(query, mean, strict=True)))


def gated(query, keys, size, k, lowest_first=True):
    """The keys of the blocks by their gates, the newest keys of the last block that k reaches."""
    pages = [list(range(at, min(at + size, len(keys)))) for at in range(0, len(keys), size)]
    query, keys = query.tolist(), keys.tolist()
    gates = [product(query, [keys[slot] for slot in page]) for page in pages]
    own = len(pages) - 1  # its gate is infinite
    kept = list[int]()
    others = best(gates, slots=range(own))
    if not lowest_first:
        others.sort(key=lambda page: (-gates[page], -page))
    for page in [own, *others]:
        kept += pages[page][::-1][: k - len(kept)]
    return sorted(kept)


@pytest.mark.parametrize("heads", [(4, 2), (3, 1)])
@pytest.mark.parametrize(
    ("size", "length", "k"), [(4, 40, 12), (8, 37, 14), (5, 33, 2), (16, 41, 60), (1, 23, 9)]
)
def test_the_own_block_and_those_of_the_greatest_products(heads, size, length, k):
    recipe = parse(f"moba(page_size={size})")
    one = RANDOM(recipe, length=length, rows=1, heads=heads, seed=size)
    queries, keys = arrays(one)
    got = chosen(one, recipe, one.build(recipe), k)
    assert len(got) == heads[0]
    for head, slots in enumerate(got):
        assert sorted(slots) == gated(queries[head, -1], keys[head], size, k)


@pytest.mark.parametrize("size", [3, 4])
def test_equal_blocks_come_by_the_lowest(size):
    recipe = parse(f"moba(page_size={size})")
    highest = 0
    for seed in range(4):
        one = RANDOM(recipe, length=38, rows=1, heads=(4, 1), seed=seed, whole=True)
        queries, keys = arrays(one)
        for head, slots in enumerate(chosen(one, recipe, one.build(recipe), 16)):
            asked = queries[head, -1], keys[head], size, 16
            assert sorted(slots) == gated(*asked)
            highest += gated(*asked) != gated(*asked, lowest_first=False)
    assert highest  # otherwise no block tied at the cut


@pytest.mark.parametrize(("size", "k"), [(4, 10), (7, 5)])
def test_the_own_block_grows_as_tokens_come(size, k):
    recipe = parse(f"moba(page_size={size})")
    one = stream(recipe, 3, 23)
    queries, keys = arrays(one)
    index = one.build(recipe, [1])
    for length in range(2, 24):
        one.append(recipe, index, length)
        for head, slots in enumerate(chosen(one, recipe, index, k)):
            assert sorted(slots) == gated(queries[head, length - 1], keys[head, :length], size, k)


def test_blocks_count_from_the_first_real_key():
    recipe = parse("moba(page_size=6)")
    one = RANDOM(recipe, length=35, start=(0, 4, 29), seed=1)
    got = one.ask(recipe, one.build(recipe, [20, 35]), 11).indices
    for row, first in enumerate((0, 4, 29)):
        queries, keys = one.queries[row].double().numpy(), one.keys[row].double().numpy()
        for head in range(4):
            want = gated(queries[head, -1], keys[head // 2, first:], 6, 11)
            slots = [slot - first for slot in got[row, head, 0].tolist() if slot >= 0]
            assert sorted(slots) == want


def test_each_of_several_queries_has_its_own_block():
    recipe = parse("moba(page_size=5)")
    one = stream(recipe, 4, 33)
    queries, keys = arrays(one)
    got = one.ask(recipe, one.build(recipe), 13, 9).indices[0].tolist()
    for head in range(4):
        for at in range(24, 33):
            want = gated(queries[head, at], keys[head, : at + 1], 5, 13)
            assert sorted(got[head][at - 24]) == want


def test_another_block_size_chooses_otherwise():
    recipe = parse("moba(page_size=4)")
    one = stream(recipe, 2)
    queries, keys = arrays(one)
    (got, *_) = lists(one.ask(recipe, one.build(recipe), 12))
    for size in (2, 3, 5, 8):
        assert sorted(got) != gated(queries[0, -1], keys[0], size, 12)
