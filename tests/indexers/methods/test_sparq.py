"""SparQ, arXiv 2312.04985, algorithm 1: channels of the largest query components, and the mean value."""

from __future__ import annotations

import numpy as np
import pytest

from plainly import best, chosen, drawn, lists


def shares(query, keys, channels):
    """softmax(q~ . k~ / tau), tau = sqrt(D |q~|_1 / |q|_1)."""
    some = best(np.abs(query), channels)
    tau = np.sqrt(len(query) * np.abs(query[some]).sum() / np.abs(query).sum())
    logits = keys[:, some] @ query[some] / tau
    weights = np.exp(logits - logits.max())
    return weights / weights.sum()


@pytest.mark.parametrize(("given", "channels"), [("0.25", 4), ("3", 3), ("16", 16)])
@pytest.mark.parametrize("k", [1, 12, 60])
def test_keys_are_those_of_the_greatest_shares_and_the_mean_value_has_the_rest(given, channels, k):
    queries, keys, values = drawn(channels + k, 60)
    found = chosen(f"sparq(channels={given})", queries, keys, values, k, built=50)
    for head, got in enumerate(lists(found, 4)):
        own = shares(queries[head, -1], keys[head // 2], channels)
        wanted = best(own, k)
        assert got == wanted
        assert found.rest is not None and found.rest.logits is None
        assert found.rest.share is not None
        rest = found.rest.share[0, head, 0].numpy()
        np.testing.assert_allclose(rest, [1 - own[wanted].sum()], atol=1e-5)
        mean = values[head // 2].mean(0)
        np.testing.assert_allclose(found.rest.values[0, head, 0, 0].numpy(), mean, atol=1e-5)


def test_the_newest_keys_are_always_chosen():
    queries, keys, values = drawn(9, 60)
    found = chosen("sparq(channels=4, window=5)", queries, keys, values, 12)
    for head, got in enumerate(lists(found, 4)):
        own = shares(queries[head, -1], keys[head // 2], 4)
        assert set(got) == {*range(55, 60), *best(own[:55], 7)}
        assert found.rest is not None and found.rest.share is not None
        rest = found.rest.share[0, head, 0].numpy()
        np.testing.assert_allclose(rest, [1 - own[got].sum()], atol=1e-5)
