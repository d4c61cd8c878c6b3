"""A test of a kernel that selects keys: pytest examples/kernel_gate.py."""

import pytest

from topkit.testing import REAL_KINDS, REAL_LAYERS, assert_repeatable, assert_selects, real_tensors


def kernel(scores, k):
    """Yours: scores [..., T] to indices [..., k], in any order."""
    return scores.topk(k, sorted=False).indices


@pytest.mark.parametrize("layer", REAL_LAYERS)
@pytest.mark.parametrize("kind", REAL_KINDS)
def test_it_selects_the_largest_scores(layer, kind):
    scores = real_tensors(layer, kind).scores
    assert_selects(kernel(scores, 64), scores)


def test_it_selects_the_same_again():
    scores = real_tensors(15, "ties").scores
    assert_repeatable(lambda scores: kernel(scores, 64), {"scores": scores}, forgive_ties=True)
