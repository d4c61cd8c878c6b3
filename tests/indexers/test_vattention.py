"""vAttention's bound holds as often as it says, and texts of 0.1 name the fixed split that they were written for."""

from __future__ import annotations

import copy
import pickle
import warnings
from pathlib import Path
from statistics import NormalDist
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

from topkit.errors import InputError
from topkit.indexers import Cache, Step, quantized, sampled, sign, vattention
from topkit.indexers.spec import parse, recorded

ROOT = Path(__file__).parents[2]


def selected(recipe, queries, keys, k, seed=0):
    step = Step(scaling=0.25, seed=seed, kv_heads=keys.shape[1], inputs={"cache": Cache(keys)})
    step = step.given_to(recipe)
    return recipe.build(keys, step).select(queries, k, step)


def test_the_softmax_sum_is_within_epsilon_as_often_as_delta_says():
    torch.manual_seed(0)
    keys, queries = torch.randn(1, 2, 400, 16), 2 * torch.randn(1, 8, 1, 16)
    recipe = parse("vattention(epsilon=0.1, delta=0.2, heavy=0.02, sample=0.1, sink=4, window=4)")
    mass = (queries @ keys.repeat_interleave(4, 1).mT * 0.25).softmax(-1)
    off, sizes = [], []
    for seed in range(200):
        found = selected(recipe, queries, keys, 400, seed)
        assert found.log_weights is not None
        weights = mass.gather(-1, found.indices.clamp_min(0)) * found.log_weights.exp()
        off.append((weights.masked_fill(found.indices < 0, 0).sum(-1) - 1).abs())
        sizes.append((found.indices >= 0).sum(-1).float())
    missed = (torch.stack(off) > 0.1).float().mean()
    assert missed < 0.2 + 0.03, "the bound fails more often than delta"
    assert missed > 0.005, "far more is read than the bound asks for"
    assert torch.stack(sizes).mean() < 300


def test_a_smaller_epsilon_or_delta_reads_more_and_k_caps_it():
    torch.manual_seed(1)
    keys, queries = torch.randn(1, 2, 300, 16), torch.randn(1, 4, 1, 16)

    def kept(k=300, **more):
        recipe = vattention(**{"heavy": 0.05, "sample": 0.02, "sink": 2, "window": 2, **more})
        return int((selected(recipe, queries, keys, k).indices >= 0).sum())

    assert kept(epsilon=0.3) < kept(epsilon=0.1) < kept(epsilon=0.05)
    assert kept(epsilon=0.1, delta=0.5) < kept(epsilon=0.1, delta=0.05)
    assert kept(k=40, epsilon=0.01) == 4 * 40


def test_delta_is_of_errors_to_both_sides_and_twice_that_of_the_authors_code():
    """The size of the sample by their theorem, with the quantile of 1 - delta / 2; and by their code, of 1 - delta."""
    torch.manual_seed(2)
    keys, queries = torch.randn(1, 1, 2000, 16), torch.randn(1, 1, 1, 16)
    weights = (0.25 * queries @ keys.mT).exp().flatten()
    theorem, code = NormalDist().inv_cdf(1 - 0.1 / 2), NormalDist().inv_cdf(1 - 0.1)
    for delta, quantile in ((0.1, theorem), (2 * 0.1, code)):
        recipe = vattention(epsilon=0.1, delta=delta, heavy=0.0, sample=0.05, sink=0, window=0)
        own = [selected(recipe, queries, keys, 2000, seed).indices for seed in range(20)]
        mean = sum(int((slots >= 0).sum()) for slots in own) / 20
        share = float(weights.std() / weights.mean()) / 0.1
        assert 100 < mean == pytest.approx((quantile * share) ** 2, rel=0.1)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("vattention(sign(), top=0.25)", sampled(sign(), top=0.25)),
        ("vattention:top=0.25", sampled(top=0.25)),
        ("vattention(sign(), 0.25)", sampled(sign(), top=0.25)),
        (
            "vattention(base=quantized(dtype='int4', hadamard=False, scale='float'), top=0.5)",
            sampled(quantized(dtype="int4")),
        ),
    ],
)
def test_texts_of_0_1_name_the_fixed_split_with_one_line_of_warning(text, wanted):
    with pytest.warns(FutureWarning, match="is now sampled") as caught:
        assert parse(text) == wanted
    assert len(caught) == 1 and "\n" not in str(caught[0].message)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert recorded(text) == wanted
        assert parse(repr(wanted)) == wanted


def test_python_of_0_1_makes_the_fixed_split_too():
    old: Any = vattention
    for make in (lambda: old(sign(), 0.25), lambda: old(sign(), top=0.25)):
        with pytest.warns(FutureWarning, match="is now sampled"):
            assert make() == sampled(sign(), top=0.25)
    own = vattention(sign(), epsilon=0.2)
    assert own == copy.deepcopy(own) == pickle.loads(pickle.dumps(own)) == parse(repr(own))


def test_a_text_that_may_be_of_0_1_is_said_to_mean_another_method_now():
    with pytest.warns(FutureWarning, match="is now sampled"):
        assert parse("vattention(sign())") == vattention(sign())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        parse("vattention(sign(), epsilon=0.05)")


def test_tables_of_committed_results_still_read():
    found = 0
    for path in ROOT.glob("results/*/curve/haystacks/rows.parquet"):
        for name in set(pq.read_table(path, columns=["indexer"])["indexer"].to_pylist()):
            if name.startswith("vattention") and "epsilon=" not in name:  # of 0.1
                found += 1
                assert recorded(name) == sampled(quantized(dtype="int4"))
    assert found


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("vattention(epsilon=0)", "epsilon must be a number above 0 and below 1; got 0"),
        ("vattention(delta=1.0)", "delta must be a number above 0 and below 1; got 1.0"),
        ("vattention(heavy=1.5)", "heavy must be a number from 0 to 1; got 1.5"),
        ("vattention(sample=-0.1)", "sample must be a number from 0 to 1; got -0.1"),
        ("vattention(sink=-1)", "sink must be a whole number of at least 0; got -1"),
        ("keep(vattention(epsilon=0.1))", "would bias the weighted sample"),
    ],
)
def test_what_is_refused_says_why(text, message):
    with pytest.raises(InputError, match=message):
        parse(text)
