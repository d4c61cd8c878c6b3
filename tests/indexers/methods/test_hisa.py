"""HISA, arXiv 2603.28458, section 3: blocks by their mean key, then the best keys of those."""

from __future__ import annotations

import numpy as np
import pytest

from plainly import WIDTH, arrays, best, chosen, stream
from topkit.errors import InputError
from topkit.indexers.lightning import lightning
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


@pytest.mark.parametrize(
    ("size", "pages", "length", "k"), [(4, 3, 50, 9), (8, 2, 61, 16), (16, 1, 70, 5)]
)
def test_blocks_and_keys_by_the_scores_of_lightning(size, pages, length, k):
    """The paper's own use: one list for the layer, of index keys and of their blocks' means."""
    recipe = parse(f"hisa(page_size={size}, pages={pages}, weights='given')")
    one = stream(recipe, length + k, length)
    keys = one.vectors["index_keys"][0, 0].double().numpy()
    queries = one.vectors["index_queries"][0, :, -1].double().numpy()
    gates = one.tokens["index_weights"][0, -1].double().numpy()

    def scores(some: np.ndarray) -> np.ndarray:
        each = [gate * np.maximum(some @ q, 0) for q, gate in zip(queries, gates, strict=True)]
        return np.sum(each, 0) * (len(queries) * WIDTH) ** -0.5

    blocks = [range(first, min(first + size, length)) for first in range(0, length, size)]
    ranked = best(scores(np.stack([keys[block].mean(0) for block in blocks])), len(blocks))
    enough = next(n for n in range(1, 99) if sum(len(blocks[b]) for b in ranked[:n]) >= k)
    among = sorted(slot for block in ranked[: max(pages, enough)] for slot in blocks[block])
    got = chosen(one, recipe, one.build(recipe, range(length - 5, length + 1)), k)
    assert [list(slots) for slots in got] == [best(scores(keys), k, among)]


def test_of_every_block_it_is_lightning():
    one = stream(parse("lightning(weights='given', dtype='fp8')"), 3, 60)
    plain = lightning("given", "fp8")
    both = parse("hisa(page_size=8, weights='given', dtype='fp8')")
    assert chosen(one, both, one.build(both), 9) == chosen(one, plain, one.build(plain), 9)


def test_what_lightning_reads_it_reads():
    assert parse("hisa()").needs == {"cache"}
    for weights in ("given", "reference"):
        ours, scorer = parse(f"hisa(weights='{weights}')"), lightning(weights)
        assert ours.needs == scorer.needs
        assert ours.files() == scorer.files() and ours.models() == scorer.models()
        assert dict(ours.widths()) == dict(scorer.widths())
    with pytest.raises(
        InputError, match="hisa: dtype='fp8' is of lightning's keys; give weights too"
    ):
        parse("hisa(dtype='fp8')")
    with pytest.raises(InputError, match="no weights at 'nowhere'"):
        parse("hisa(weights='nowhere')")
