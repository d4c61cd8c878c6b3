"""RaBitQ's estimate has no bias, its bound holds as often as it says, and reranking reads what it must."""

from __future__ import annotations

import math

import pytest
import torch

from topkit.contract.draw import RANDOM
from topkit.errors import InputError
from topkit.indexers.exact import exact
from topkit.indexers.mean_key import MeanIndex
from topkit.indexers.rabitq import rabitq, rotation
from topkit.indexers.spec import parse


def told(recipe: rabitq, one, queries: torch.Tensor):
    """Scores and bounds of a stream's keys, and what the scores estimate."""
    index = one.build(recipe)
    assert isinstance(index, MeanIndex)
    step = one.step(recipe, slice(one.length - 1, one.length), one.length)
    scores, bound = recipe.score(queries, index.codes, step), recipe.bound(queries, index.codes)
    left = (one.keys - index.mean).repeat_interleave(2, 1)
    return scores, bound, queries @ left.mT


def test_a_rotation_is_orthogonal_and_that_of_its_seed():
    cpu = torch.device("cpu")
    state = torch.get_rng_state()
    for width in (1, 3, 16):
        turn = rotation(width, 5, cpu)
        torch.testing.assert_close(turn @ turn.T, torch.eye(width, dtype=torch.float64))
    assert not torch.equal(rotation(16, 5, cpu), rotation(16, 6, cpu))
    assert torch.equal(torch.get_rng_state(), state)


def test_the_estimate_has_no_bias_and_its_bound_holds():
    one = RANDOM(rabitq(), length=30, rows=1)
    queries = one.queries[:, :, 29:]
    drawn = [told(rabitq(seed=n, rerank=True), one, queries) for n in range(300)]
    errors = torch.stack([scores - true for scores, _, true in drawn])
    bounds = torch.stack([bound for _, bound, _ in drawn])
    standard = errors.std(0) / math.sqrt(len(errors))
    assert errors.std() > 0.5  # of an estimate that is one
    assert (errors.mean(0).abs() < 4.5 * standard).all()
    within = (errors.abs() <= bounds).float().mean()
    assert 0.92 < within < 0.99  # 1.9 standard deviations of a normal: 0.943
    # A bound of another width holds as often as that one says.
    narrow = (errors.abs() <= bounds / 1.9).float().mean()
    assert 0.6 < narrow < 0.75


def test_reranking_by_a_wide_bound_chooses_what_exact_chooses():
    one = RANDOM(rabitq(), length=60, start=(0, 9))
    recipe = rabitq(rerank=True, epsilon=100)
    got = one.ask(recipe, one.build(recipe), 7).indices
    assert torch.equal(got, one.ask(exact(), one.build(exact()), 7).indices)


def test_reranking_reads_fewer_keys_where_the_bound_is_narrow():
    one = RANDOM(rabitq(), length=200, rows=2)
    read, alike = [], []
    truth = one.ask(exact(), one.build(exact()), 5).indices
    for epsilon in (0.0, 1.0, 1.9, 100.0):
        recipe = rabitq(rerank=True, epsilon=epsilon)
        index = one.build(recipe)
        chosen = one.ask(recipe, index, 5)
        keys = torch.as_tensor(chosen.keys_scored) - 200
        read.append(keys.mean().item())
        step = one.step(recipe, slice(199, 200), 200)
        per_key = index.bytes_per_key(step)
        assert torch.equal(
            torch.as_tensor(chosen.bytes_read), 200 * per_key + keys * 4 * 16 * 4
        )  # of four query heads, 16 numbers of 4 bytes
        both = zip(chosen.indices.flatten(0, 2), truth.flatten(0, 2), strict=True)
        alike.append(sum(len(set(a.tolist()) & set(b.tolist())) for a, b in both))
    assert read[0] == 5 and read[0] < read[1] < read[2] < read[3] == 200
    assert alike[0] < alike[2] and alike[3] == 8 * 5 and alike[2] >= 36


def test_keys_at_the_centroid_score_nothing_and_a_nan_is_seen():
    one = RANDOM(rabitq(), length=8, rows=1)
    keys = torch.ones_like(one.keys)
    index = rabitq().build(keys, one.step(rabitq(), slice(0, 0), 0))
    scores = index.score(one.queries[:, :, 7:], one.step(rabitq(), slice(7, 8), 8))
    assert (scores == 0).all()
    keys = one.keys.clone()
    keys[0, 0, 3, 2] = torch.nan
    index.append(keys, one.step(rabitq(), slice(0, 8), 16))
    scores = index.score(one.queries[:, :, 7:], one.step(rabitq(), slice(7, 8), 16))
    assert scores[0, 0, 0].isnan().nonzero().flatten().tolist() == [11]


def test_what_it_holds_is_a_bit_a_dimension_and_its_scalars():
    one = RANDOM(rabitq(), length=20, rows=1)
    mean = 2 * 16 * 4
    assert one.build(rabitq()).nbytes == 2 * 20 * (2 + 4) + mean
    assert one.build(rabitq(rerank=True)).nbytes == 2 * 20 * (2 + 8) + mean


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("rabitq:seed=-1", "rabitq: seed must be a whole number of at least 0; got -1"),
        ("rabitq:epsilon=-0.5", r"rabitq: epsilon must be a number of at least 0; got -0\.5"),
        ("rabitq:rerank=2", "rabitq: rerank must be true or false; got 2"),
    ],
)
def test_parameters_are_refused(spec, says):
    with pytest.raises(InputError, match=says):
        parse(spec)
