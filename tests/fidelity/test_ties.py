"""Ties are a matter of the scores compared: whatever one key holds, the judgement of the others stays."""

import math

import pytest
import torch

from topkit.fidelity import METRICS, floors, hits, judge, judge_units, truth, unit_truth
from topkit.indexers import Selection
from topkit.kernels.rounding import Rounding, norms
from topkit.kernels.score import score

NEVER = -math.inf


def drawn(seed=0, length=300, count=5):
    g = torch.Generator().manual_seed(seed)
    shapes = ((2, 6, count, 32), (2, 2, length, 32), (2, 2, length, 16))
    queries, keys, values = (torch.randn(s, generator=g) for s in shapes)
    return queries + 0.6 * torch.randn(32, generator=g), keys, values


def chosen(lists, length, k, count=5, seed=1):
    g = torch.Generator().manual_seed(seed)
    return torch.rand(2, lists, count, length, generator=g).argsort(-1)[..., :k] + 1


def judged(queries, keys, values, indices, k, known=False, scaling=0.2):
    """At the level of heads, and of the lists; all keys are visible."""
    stop = torch.full((1, queries.shape[2]), keys.shape[2])
    scores = score(queries, keys) if known else None
    exact = truth(queries, keys, values, k, scaling=scaling, stop=stop, scores=scores)
    units = unit_truth(exact, queries, keys, k, indices.shape[1], scores=scores)
    picked = Selection(indices)
    heads = judge(exact, queries, keys, values, picked, k, scores=scores)
    return heads, judge_units(exact, units, queries, keys, picked, k, scores=scores)


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("lists", [1, 2, 6])
def test_a_key_of_huge_norm_that_no_query_wants_changes_nothing(lists, known):
    """Slot 0 scores below all others: what is judged is as if it were not there."""
    queries, keys, values = drawn()
    mean = queries.reshape(-1, 32).mean(0)
    aligned = queries.double() @ mean.double()
    queries = queries - (aligned - aligned.abs())[..., None].float() * mean / mean.square().sum()
    huge = keys.clone()
    huge[:, :, 0] = -1e7 * mean
    indices = chosen(lists, 299, 40)
    with_it = judged(queries, huge, values, indices, 40, known)
    without = judged(queries, keys[:, :, 1:], values[:, :, 1:], indices - 1, 40, known)
    for ours, theirs in zip(with_it, without, strict=True):
        for name in set(METRICS) - {"output_error"}:
            torch.testing.assert_close(
                ours[name], theirs[name], rtol=1e-4, atol=1e-5, equal_nan=True, msg=name
            )


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize(("lists", "size"), [(1, 1e4), (2, 1e4), (6, 1e8)])
def test_a_key_of_huge_norm_that_every_query_wants_is_one_key(lists, size, known):
    """It holds all the mass, and which of the others were chosen is judged as before."""
    queries, keys, values = drawn()
    queries[..., 0] = queries[..., 0].abs() + 1
    huge = keys.clone()
    huge[:, :, 0] = 0
    huge[:, :, 0, 0] = size
    others = chosen(lists, 299, 40)
    first = torch.zeros_like(others[..., :1])
    missed = judged(queries, huge, values, others, 40, known)
    hit = judged(queries, huge, values, torch.cat([first, others[..., :39]], -1), 40, known)
    alone = judged(queries, keys[:, :, 1:], values[:, :, 1:], others[..., :39] - 1, 39, known)
    for level, (misses, hits_, without) in enumerate(zip(missed, hit, alone, strict=True)):
        assert misses["mass"].eq(0).all() and misses["top1"].eq(0).all()
        assert hits_["top1"].eq(1).all()
        torch.testing.assert_close(hits_["mass"], torch.ones_like(hits_["mass"]))
        torch.testing.assert_close(hits_["mass_ratio"], torch.ones_like(hits_["mass"]))
        if level == 0:
            torch.testing.assert_close(hits_["recall"], (1 + 39 * without["recall"]) / 40)
        # Beside it all other weights are no floats, and yet one is less than another.
        if lists < 6:
            assert hits_["recall"].mean() < 0.3


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("factor", [1.0, 600.0, 1e4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_no_share_passes_one(dtype, factor, known):
    queries, keys, values = ((factor**0.5 * x).to(dtype) for x in drawn())
    indices = score(queries, keys).topk(64).indices
    for columns in judged(queries, keys, values, indices, 64, known, scaling=1.0):
        for name in ("recall", "own_recall", "mass", "mass_ratio", "top1"):
            assert (columns[name] <= 1).all(), name
        assert (columns["recall"] == 1).all()
        assert (columns["mass"] > 0.9999 if factor > 1 else columns["mass"] > 0.1).all()


def test_one_score_that_is_known_badly_takes_one_place():
    scores = torch.tensor([9.0, 8.0, 7.0, 6.0, 5.0])
    off = torch.tensor([0.1, 100.0, 0.1, 0.1, 0.1])
    assert floors(scores, off).tolist() == pytest.approx([8.9, 6.9, 5.9, 4.9, -92.0])
    sure = floors(scores, off, 3)
    best = torch.tensor([0, 1, 2])
    assert hits(scores[best], off[best], sure, torch.tensor(3)) == 3
    assert hits(scores[[0, 2, 3]], off[[0, 2, 3]], sure, torch.tensor(3)) == 3
    assert hits(scores[[0, 3, 4]], off[[0, 3, 4]], sure, torch.tensor(3)) == 2
    none = torch.tensor([NEVER, NEVER])
    assert hits(none, torch.tensor([math.nan, math.inf]), sure, torch.tensor(2)) == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("width", [3, 64, 576])
def test_products_in_any_order_differ_by_less_than_the_rounding(dtype, width):
    g = torch.Generator().manual_seed(width)
    queries = torch.randn(2, 4, 3, width, generator=g).to(dtype)
    keys = (1 + torch.randn(2, 2, 500, width, generator=g)).to(dtype)
    bound = Rounding.of(queries, keys)
    right = queries.double().unflatten(1, (2, 2)) @ keys.double()[:, :, None].mT
    one_by_one = torch.zeros(2, 4, 3, 500)
    for d in torch.randperm(width, generator=g).tolist():
        one_by_one += (
            queries[..., d, None].float() * keys.repeat_interleave(2, 1)[..., d][:, :, None].float()
        )
    for products in (score(queries, keys), one_by_one):
        off = (products.double() - right.flatten(1, 2)).abs()
        assert (off <= 0.7 * bound.whole()).all()
    slots = torch.randint(0, 500, (2, 4, 3, 7), generator=g)
    assert bound.at(slots).equal(bound.whole().gather(-1, slots))
    assert bound.at(slots[:, :1]).equal(
        bound.whole().gather(-1, slots[:, :1].expand(-1, 4, -1, -1))
    )


@pytest.mark.parametrize("size", [1e-30, 1.0, 1e30])
def test_norms_fit_where_squares_do_not(size):
    vectors = torch.randn(2, 3, 700, 65, generator=torch.Generator().manual_seed(0)).double()
    expected = size * vectors.norm(dim=-1)
    found = norms((size * vectors).float())
    assert found.dtype == torch.float32 and found.shape == (2, 3, 700)
    if size >= 1:
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=0)
    assert norms(torch.zeros(1, 2, 0, 4)).shape == (1, 2, 0)
