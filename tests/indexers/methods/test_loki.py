"""Loki, arXiv 2406.02542, section 4: scores over the leading principal components of the keys."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from plainly import WIDTH, arrays, best, chosen, uneven
from topkit.indexers.spec import parse


@pytest.mark.parametrize(("given", "count"), [("0.25", 4), ("3", 3), ("0.5", 8)])
@pytest.mark.parametrize("built", [60, 41])
def test_scores_are_over_the_directions_in_which_keys_differ_most(given, count, built):
    recipe = parse(f"loki(channels={given})")
    one = uneven(recipe, count, 60)
    # A common offset, which no direction of difference has.
    one = replace(one, keys=one.keys + torch.arange(WIDTH) / 4)
    queries, keys = arrays(one)
    got = chosen(one, recipe, one.build(recipe, range(built, 61)), 14)
    for head, own in enumerate(keys):
        _, vectors = np.linalg.eigh(np.cov(own[:built].T))
        leading = vectors[:, ::-1][:, :count]
        assert got[head] == best((own @ leading) @ (queries[head, -1] @ leading), 14)
