"""SparQ, arXiv 2312.04985, algorithm 1: channels of the largest query components, and the mean value."""

from __future__ import annotations

import numpy as np
import pytest

from plainly import arrays, best, lists, softmax, uneven
from topkit.indexers.spec import parse


def shares(query, keys, channels):
    """softmax(q~ . k~ / tau), tau = sqrt(D |q~|_1 / |q|_1)."""
    some = best(np.abs(query), channels)
    tau = np.sqrt(len(query) * np.abs(query[some]).sum() / np.abs(query).sum())
    return softmax(keys[:, some] @ query[some] / tau)


@pytest.mark.parametrize(("given", "channels"), [("0.25", 4), ("3", 3), ("16", 16)])
@pytest.mark.parametrize("k", [1, 12, 60])
def test_keys_are_those_of_the_greatest_shares_and_the_mean_value_has_the_rest(given, channels, k):
    recipe = parse(f"sparq(channels={given})")
    one = uneven(recipe, channels + k, 60)
    queries, keys = arrays(one)
    means = one.values[0].double().numpy().mean(1)
    found = one.ask(recipe, one.build(recipe, range(50, 61)), k)
    got, rest = lists(found), found.rest
    assert rest is not None and rest.logits is None and rest.share is not None
    for head in range(4):
        own = shares(queries[head, -1], keys[head], channels)
        assert got[head] == best(own, k)
        share, value = rest.share[0, head, 0].numpy(), rest.values[0, head, 0, 0].numpy()
        np.testing.assert_allclose(share, [1 - own[got[head]].sum()], atol=1e-5)
        np.testing.assert_allclose(value, means[head // 2], atol=1e-5)


def test_the_newest_keys_are_always_chosen():
    recipe = parse("sparq(channels=4, window=5)")
    one = uneven(recipe, 9, 60)
    queries, keys = arrays(one)
    found = one.ask(recipe, one.build(recipe), 12)
    got, rest = lists(found), found.rest
    assert rest is not None and rest.share is not None
    for head in range(4):
        own = shares(queries[head, -1], keys[head], 4)
        assert set(got[head]) == {*range(55, 60), *best(own[:55], 7)}
        share = rest.share[0, head, 0].numpy()
        np.testing.assert_allclose(share, [1 - own[got[head]].sum()], atol=1e-5)
