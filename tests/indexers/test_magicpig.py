"""MagicPIG draws keys as probably as its weights say, whatever holds of the sample is kept."""

from __future__ import annotations

import math

import pytest
import torch

from topkit.errors import InputError
from topkit.indexers import Cache, Step
from topkit.indexers.spec import parse


def selected(spec, queries, keys, k, seed):
    recipe = parse(spec)
    step = Step(scaling=0.25, seed=seed, kv_heads=keys.shape[1], inputs={"cache": Cache(keys)})
    step = step.given_to(recipe)
    return recipe.build(keys, step).select(queries, k, step)


def test_keys_are_drawn_as_often_as_their_weights_say():
    torch.manual_seed(0)
    keys, queries = torch.randn(1, 1, 60, 16), torch.randn(1, 2, 1, 16)
    times, said = torch.zeros(2, 60), torch.zeros(2, 60)
    for seed in range(120):
        found = selected("magicpig(bits=3, tables=12, sink=0, window=0)", queries, keys, 60, seed)
        assert found.log_weights is not None
        for head in range(2):
            real = found.indices[0, head, 0] >= 0
            slots = found.indices[0, head, 0][real]
            times[head, slots] += 1
            said[head, slots] = (-found.log_weights[0, head, 0][real]).exp()
    known = said > 0
    off = (times / 120 - said)[known] / (said * (1 - said) / 120).sqrt()[known].clamp_min(1e-6)
    assert known.float().mean() > 0.9 and off.abs().max() < 5


def test_the_softmax_sum_is_met_on_average_with_and_without_a_cap():
    torch.manual_seed(1)
    keys, queries = torch.randn(1, 1, 80, 16), torch.randn(1, 1, 1, 16)
    mass = (queries @ keys.mT * 0.25).softmax(-1)
    for k in (80, 30):
        sums = []
        for seed in range(150):
            spec = "magicpig(bits=2, tables=8, sink=2, window=4)"
            found = selected(spec, queries, keys, k, seed)
            assert found.log_weights is not None
            own = mass.gather(-1, found.indices.clamp_min(0)) * found.log_weights.exp()
            sums.append(own.masked_fill(found.indices < 0, 0).sum())
            assert (found.indices >= 0).sum() <= k
        sums = torch.stack(sums)
        assert abs(sums.mean() - 1) < 4 * sums.std() / math.sqrt(150)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("magicpig(bits=0)", "bits must be a whole number of at least 1; got 0"),
        ("magicpig(bits=16)", "bits must be a whole number of at most 15; got 16"),
        ("magicpig(tables=1)", "tables must be a whole number of at least 2; got 1"),
        ("clusterkv(per_cluster=0)", "per_cluster must be a whole number of at least 1; got 0"),
        ("retroinfer(estimate=1.5)", "estimate must be a number from 0 to 1; got 1.5"),
        ("squeezed(share=0)", "share must be above 0"),
        ("squeezed(sparsity=2)", "sparsity must be a number from 0 to 1; got 2"),
        ("keep(magicpig())", "would bias the weighted sample"),
        ("keep(retroinfer(), sink=1)", "retroinfer"),
    ],
)
def test_what_is_refused_says_why(spec, message):
    with pytest.raises(InputError, match=message):
        parse(spec)
