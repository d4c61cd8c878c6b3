"""faiss_rabitq against the paper's estimate, from its rotation and FAISS's own centroid."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import pytest

from faiss_read_back import Asked, array, drawn, hold


@cache
def rotation(width: int) -> np.ndarray:
    """What keys are turned by before FAISS sees them [D, D]: a build on one unit vector has it as its centroid."""
    columns = []
    for unit in np.eye(width, dtype="f4"):
        one = Asked(np.tile(unit, (1, 4, 1)), unit[None], 4)
        columns.append(center(one.chosen("faiss_rabitq", 1)[1][0]))
    return np.stack(columns, 1)


def center(index) -> np.ndarray:
    """The centroid among FAISS's codes, of turned keys."""
    return array(index.center).astype("f8")


def estimate(key: np.ndarray, query: np.ndarray, center: np.ndarray) -> tuple[float, float]:
    """q . k by one bit a dimension, and one standard deviation of theorem 3.2's bound.

    <o, q> = <o_bar, q> / <o_bar, o> of o = (k - c) / |k - c| and of q - c, o_bar the corner that o is nearest
    to; the rest, c . k + c . q - |c|^2, is known.
    """
    left, asked = key - center, query - center
    size = float(np.linalg.norm(left))
    if size == 0:
        return float(query @ key), 0.0
    o = left / size
    corner = np.where(o > 0, 1.0, -1.0) / math.sqrt(len(o))
    share = float(corner @ o)
    told = size * float(corner @ asked) / share
    off = size * float(np.linalg.norm(asked)) * math.sqrt((1 / share**2 - 1) / (len(o) - 1))
    return told + float(center @ key + center @ query - center @ center), off


@pytest.mark.parametrize("begun", [300, 100])
@pytest.mark.parametrize("far", [0.0, 3.0])
def test_one_bit_and_a_whole_query_are_the_papers_estimate(begun, far):
    asked = drawn(300, width=64, begun=begun, far=far)
    lists, indexes = asked.chosen("faiss_rabitq:query_bits=0", 12)
    for head, chosen in enumerate(lists):
        turn, middle = rotation(64), center(indexes[asked.key_head(head)])
        np.testing.assert_allclose(turn @ turn.T, np.eye(64), atol=1e-4)
        keys = asked.keys[asked.key_head(head)].astype("f8") @ turn.T
        np.testing.assert_allclose(middle, keys[:begun].mean(0), atol=1e-3)
        query = turn @ asked.queries[head]
        scores = {slot: estimate(key, query, middle)[0] for slot, key in enumerate(keys)}
        hold(chosen, scores, 12, slack=2e-3 * (1 + far))


def test_a_query_of_four_bits_is_off_by_its_steps_at_most():
    asked = drawn(300, width=64)
    lists, indexes = asked.chosen("faiss_rabitq", 12)
    for head, chosen in enumerate(lists):
        turn, middle = rotation(64), center(indexes[asked.key_head(head)])
        keys = asked.keys[asked.key_head(head)].astype("f8") @ turn.T
        query = turn @ asked.queries[head]
        scores = {slot: estimate(key, query, middle)[0] for slot, key in enumerate(keys)}
        step = float(np.ptp(query - middle)) / 15
        # Of each dimension half a step, and of a corner's sum all of one sign at the worst; in truth random.
        sizes = np.linalg.norm(keys - middle, axis=1) / math.sqrt(64) / 0.7
        hold(chosen, scores, 12, slack=8 * step * float(sizes.max()))


@pytest.mark.parametrize("spec", ["faiss_rabitq", "faiss_rabitq:bits=4,query_bits=0"])
def test_what_is_chosen_lies_within_the_papers_bound(spec):
    """True products of the keys chosen and left out, four standard deviations of either off."""
    asked = drawn(400, width=64, seed=3)
    lists, indexes = asked.chosen(spec, 12)
    alike = 0
    for head, chosen in enumerate(lists):
        turn, middle = rotation(64), center(indexes[asked.key_head(head)])
        keys = asked.keys[asked.key_head(head)].astype("f8") @ turn.T
        query = turn @ asked.queries[head]
        true = {slot: float(key @ query) for slot, key in enumerate(keys)}
        off = [4 * estimate(key, query, middle)[1] for key in keys]
        least = min(true[slot] + off[slot] for slot in chosen)
        assert all(true[s] - off[s] <= least for s in true if s not in chosen)
        alike += len(set(sorted(true, key=true.__getitem__)[-12:]) & set(chosen))
    assert alike >= (36 if "bits=4" in spec else 16)
