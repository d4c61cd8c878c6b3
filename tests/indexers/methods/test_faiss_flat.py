"""faiss_flat against a loop over all keys."""

from __future__ import annotations

import numpy as np
import pytest

from faiss_read_back import Asked, drawn, hold
from plainly import best


def products(asked: Asked, head: int) -> dict[int, float]:
    keys = asked.keys[asked.key_head(head)].astype("f8")
    return {slot: float(key @ asked.queries[head]) for slot, key in enumerate(keys)}


@pytest.mark.parametrize("begun", [300, 40])
@pytest.mark.parametrize("k", [1, 7, 300, 500])
def test_the_largest_products_of_all_keys(begun, k):
    asked = drawn(begun=begun)
    lists, _ = asked.chosen("faiss_flat", k)
    for head, chosen in enumerate(lists):
        scores = products(asked, head)
        hold(chosen, scores, k)
        assert chosen == best(scores, k)


def test_many_equal_products():
    rng = np.random.default_rng(1)
    keys = rng.integers(-1, 2, (2, 120, 4)).astype("f4")
    asked = Asked(keys, rng.integers(-1, 2, (4, 4)).astype("f4"), 120)
    for k in (1, 10, 119):
        for head, chosen in enumerate(asked.chosen("faiss_flat", k)[0]):
            hold(chosen, products(asked, head), k, slack=0)
