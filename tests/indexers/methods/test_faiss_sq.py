"""faiss_sq against keys rounded one number at a time."""

from __future__ import annotations

import math

import numpy as np
import pytest

from faiss_read_back import drawn, hold


def rounded(x: float, low: float, high: float, bits: int) -> float:
    """A number in the middle of its step, of 2^bits - 1 between low and high; cut to these."""
    steps = 2**bits - 1
    share = 0.0 if high == low else min(max((x - low) / (high - low), 0.0), 1.0)
    return low + (math.floor(share * steps) + 0.5) / steps * (high - low)


@pytest.mark.parametrize("bits", [4, 6, 8])
@pytest.mark.parametrize("begun", [200, 60])
def test_keys_in_steps_of_each_dimensions_range_at_build(bits, begun):
    asked = drawn(200, begun=begun)
    lists, _ = asked.chosen(f"faiss_sq:bits={bits}", 9)
    for head, chosen in enumerate(lists):
        keys = asked.keys[asked.key_head(head)]
        low, high = keys[:begun].min(0), keys[:begun].max(0)
        scores = {}
        for slot, key in enumerate(keys):
            told = [rounded(x, a, b, bits) for x, a, b in zip(key, low, high, strict=True)]
            scores[slot] = float(np.dot(told, asked.queries[head]))
        hold(chosen, scores, 9)


def test_sixteen_bits_are_halves():
    asked = drawn(200, begun=50)
    lists, _ = asked.chosen("faiss_sq:bits=16", 9)
    for head, chosen in enumerate(lists):
        keys = asked.keys[asked.key_head(head)].astype("f2").astype("f8")
        hold(chosen, {slot: float(key @ asked.queries[head]) for slot, key in enumerate(keys)}, 9)
