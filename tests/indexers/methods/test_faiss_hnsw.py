"""faiss_hnsw against the order of augmented distances, where the walk is wide enough to meet every key."""

from __future__ import annotations

import numpy as np
import pytest

from faiss_read_back import Asked, drawn, hold
from plainly import best


def nearness(asked: Asked, head: int) -> dict[int, float]:
    """q . k, and half of what a key is longer than the room of the build allows, taken off.

    |(q, 0) - (k, r)|^2 = |q|^2 - 2 q . k + |k|^2 + r^2 with r^2 = max(c - |k|^2, 0), c twice the largest
    |k|^2 at build.
    """
    keys, query = asked.keys[asked.key_head(head)].astype("f8"), asked.queries[head].astype("f8")
    room = 2 * max(float(key @ key) for key in keys[: asked.begun])
    return {
        slot: float(key @ query) - max(float(key @ key) - room, 0.0) / 2
        for slot, key in enumerate(keys)
    }


@pytest.mark.parametrize("far", [0.0, 20.0])
@pytest.mark.parametrize("begun", [200, 199])
def test_a_walk_that_meets_every_key_orders_them_by_their_products(far, begun):
    asked = drawn(200, begun=begun, far=far)
    lists, _ = asked.chosen("faiss_hnsw:ef_search=512,ef_construction=200", 20)
    for head, chosen in enumerate(lists):
        keys = asked.keys[asked.key_head(head)].astype("f8")
        exact = {slot: float(key @ asked.queries[head]) for slot, key in enumerate(keys)}
        assert set(best(exact, 20)) == set(best(nearness(asked, head), 20))
        hold(chosen, exact, 20, slack=2e-3 * (1 + far))


def test_keys_that_are_longer_than_the_build_foresaw_count_as_further_away():
    asked = drawn(150, begun=100)
    keys = asked.keys.copy()
    keys[:, 120:130] *= 4.0
    asked = Asked(keys, asked.queries, 100)
    lists, _ = asked.chosen("faiss_hnsw:ef_search=512,ef_construction=200", 12)
    other = 0
    for head, chosen in enumerate(lists):
        scores = nearness(asked, head)
        hold(chosen, scores, 12, slack=2e-3)
        exact = {
            s: float(key @ asked.queries[head]) for s, key in enumerate(keys[asked.key_head(head)])
        }
        other += set(best(exact, 12)) != set(best(scores, 12))
    assert other, "no key was longer than foreseen: the test shows nothing"


def test_a_narrow_walk_still_meets_most_of_keys_that_share_an_offset():
    asked = drawn(2000, far=4.0)
    lists, _ = asked.chosen("faiss_hnsw", 20)
    alike = 0
    for head, chosen in enumerate(lists):
        products = asked.keys[asked.key_head(head)].astype("f8") @ asked.queries[head]
        alike += len(set(np.argsort(-products)[:20].tolist()) & set(chosen))
    assert alike >= 0.85 * 80
