"""Double Sparsity, arXiv 2408.07092, section 3.1: the channels in which keys are largest, the same for all."""

from __future__ import annotations

import numpy as np
import pytest

from plainly import best, chosen, drawn, lists


@pytest.mark.parametrize(("given", "channels"), [("0.0625", 1), ("0.5", 8), ("5", 5)])
@pytest.mark.parametrize("built", [60, 41])
def test_scores_are_over_the_heaviest_channels_of_the_build(given, channels, built):
    queries, keys, values = drawn(channels, 60)
    found = chosen(f"double_sparsity(channels={given})", queries, keys, values, 14, built=built)
    for head, got in enumerate(lists(found, 4)):
        own = keys[head // 2]
        some = best(np.abs(own[:built]).mean(0), channels)
        assert got == best(own[:, some] @ queries[head, -1, some], 14)
