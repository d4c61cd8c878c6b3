"""Loki, arXiv 2406.02542, section 4: scores over the leading principal components of the keys."""

from __future__ import annotations

import numpy as np
import pytest

from plainly import best, chosen, drawn, lists


@pytest.mark.parametrize(("given", "count"), [("0.25", 4), ("3", 3), ("0.5", 8)])
@pytest.mark.parametrize("built", [60, 41])
def test_scores_are_over_the_directions_in_which_keys_differ_most(given, count, built):
    queries, keys, values = drawn(count, 60)
    keys += np.arange(16) / 4  # a common offset, which no direction of difference has
    found = chosen(f"loki(channels={given})", queries, keys, values, 14, built=built)
    for head, got in enumerate(lists(found, 4)):
        own = keys[head // 2]
        _, vectors = np.linalg.eigh(np.cov(own[:built].T))
        leading = vectors[:, ::-1][:, :count]
        assert got == best((own @ leading) @ (queries[head, -1] @ leading), 14)
