"""Double Sparsity, arXiv 2408.07092, section 3.1: the channels in which keys are largest, the same for all."""

from __future__ import annotations

import numpy as np
import pytest

from plainly import arrays, best, chosen, uneven
from topkit.indexers.spec import parse


@pytest.mark.parametrize(("given", "channels"), [("0.0625", 1), ("0.5", 8), ("5", 5)])
@pytest.mark.parametrize("built", [60, 41])
def test_scores_are_over_the_heaviest_channels_of_the_build(given, channels, built):
    recipe = parse(f"double_sparsity(channels={given})")
    one = uneven(recipe, channels, 60)
    queries, keys = arrays(one)
    got = chosen(one, recipe, one.build(recipe, range(built, 61)), 14)
    for head in range(4):
        some = best(np.abs(keys[head, :built]).mean(0), channels)
        assert got[head] == best(keys[head][:, some] @ queries[head, -1, some], 14)
