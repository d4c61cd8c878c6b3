"""RaBitQ (arXiv 2405.12497, section 3), from what its scores say of unit queries.

A key about the centroid, o, is kept as signs s of P o for a random rotation P; the estimate of <q, o> is
<P q, s> |o|^2 / |P o|_1. It is linear in q, so that unit queries give w = P^T s |o|^2 / |P o|_1 of every key,
from which follows, whatever P is: <w, o> = |o|^2; D <w, w'> / |w||w'| are whole numbers, as products of signs;
and a = |P o|_1 / (sqrt(D) |o|) = |o| / |w|.
"""

from __future__ import annotations

import pytest
import torch

from topkit.errors import InputError
from topkit.indexers import Cache, Step
from topkit.indexers.spec import parse


def known() -> bool:
    try:
        parse("rabitq")
    except InputError:
        return False
    return True


pytestmark = pytest.mark.skipif(not known(), reason="there is no rabitq")


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def of_units(spec: str, keys: torch.Tensor) -> torch.Tensor:
    """w of every key [T, D] of one head."""
    count, width = keys.shape
    index = parse(spec).build(keys[None, None], Step())
    stop = torch.full((1, width), count)
    return index.score(torch.eye(width)[None, None], Step(stop=stop))[0, 0].mT.double()


@pytest.mark.parametrize("width", [16, 64, 128])
def test_the_estimate_is_exact_along_the_key_and_its_codes_are_signs(width):
    keys = drawn(150, width) + 2
    about = (keys - keys.mean(0)).double()
    w = of_units("rabitq", keys)
    assert torch.allclose((w * about).sum(1), about.square().sum(1), rtol=1e-4)
    unit = w / w.norm(dim=1, keepdim=True)
    signs = unit @ unit.mT * width
    assert torch.allclose(signs, signs.round(), atol=1e-3)
    assert bool((signs.round().long() % 2 == width % 2).all())
    # a concentrates about sqrt(2 / pi).
    a = about.norm(dim=1) / w.norm(dim=1)
    assert abs(float(a.mean()) - 0.798) < 0.03


def test_the_estimate_is_without_bias_and_within_its_bound():
    keys, query = drawn(40, 64), drawn(64, seed=1).double()
    about = (keys - keys.mean(0)).double()
    true, errors, beyond = about @ query, [], []
    for seed in range(60):
        w = of_units(f"rabitq:seed={seed}", keys)
        a = about.norm(dim=1) / w.norm(dim=1)
        bound = 1.9 * query.norm() * about.norm(dim=1) * ((1 / a**2 - 1) / 63).sqrt()
        errors.append(w @ query - true)
        beyond.append((errors[-1].abs() > bound).double())
    error = torch.stack(errors)
    off = error.mean(0) / (error.std(0) / 60**0.5)
    assert float(off.abs().mean()) < 1.3  # of a normal number 0.8
    # A normal number is beyond 1.9 deviations in 5.7 % of cases.
    assert 0.02 < float(torch.stack(beyond).mean()) < 0.09


def test_another_seed_is_another_rotation_and_one_seed_one():
    keys = drawn(30, 32)
    assert torch.equal(of_units("rabitq", keys), of_units("rabitq:seed=0", keys))
    assert not torch.allclose(of_units("rabitq", keys), of_units("rabitq:seed=1", keys), atol=0.1)


def test_a_list_is_the_best_of_the_estimates():
    keys, queries = drawn(200, 32), drawn(1, 3, 1, 32, seed=1)
    w = of_units("rabitq", keys).float()
    scores = queries[0, :, 0] @ w.mT
    best = torch.sort(scores, descending=True, stable=True).indices[:, :12]
    got = parse("rabitq").build(keys[None, None], Step()).select(queries, 12, Step()).indices
    assert torch.equal(got[0, :, 0], best)


def test_appended_keys_are_about_the_centroid_of_the_build():
    keys, more = drawn(90, 32) + 1, drawn(20, 32, seed=2) - 3
    index = parse("rabitq").build(keys[None, None], Step())
    index.append(more[None, None], Step())
    stop = torch.full((1, 32), 110)
    w = index.score(torch.eye(32)[None, None], Step(stop=stop))[0, 0].mT
    about = more - keys.mean(0)
    assert torch.allclose((w[90:] * about).sum(1), about.square().sum(1), rtol=1e-3)


@pytest.mark.parametrize("epsilon", [0.3, 1.9])
def test_reranking_reads_what_may_be_among_the_best(epsilon):
    keys, queries, k = drawn(300, 32), drawn(1, 4, 1, 32, seed=1), 10
    w = of_units("rabitq", keys)
    about = (keys - keys.mean(0)).double()
    a = about.norm(dim=1) / w.norm(dim=1)
    recipe = parse(f"rabitq:rerank=true,epsilon={epsilon}")
    cache = Cache(keys[None, None], keys[None, None])
    step = Step(inputs={"cache": cache}).given_to(recipe)
    got = recipe.build(keys[None, None], step).select(queries, k, step).indices[0, :, 0]
    for head in range(4):
        query = queries[0, head, 0].double()
        estimate = w @ query
        bound = epsilon * query.norm() * about.norm(dim=1) * ((1 / a**2 - 1) / 31).sqrt()
        least = (estimate - bound).sort(descending=True).values[k - 1]
        true = (keys.double() @ query).masked_fill(estimate + bound < least, -torch.inf)
        want = torch.sort(true, descending=True, stable=True).indices[:k]
        assert got[head].tolist() == want.tolist()
