"""PQCache (arXiv 2407.12820, section 3), from what its scores say of unit queries.

A key's m parts are each replaced by the nearest of 2^b centroids of k-means over the keys at build, and a score
is the sum of the parts' products with the query's. Unit queries therefore give the key as it is kept.
"""

from __future__ import annotations

import pytest
import torch

from topkit.errors import InputError
from topkit.indexers import Step
from topkit.indexers.spec import parse


def known() -> bool:
    try:
        parse("pqcache")
    except InputError:
        return False
    return True


pytestmark = pytest.mark.skipif(not known(), reason="there is no pqcache")


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def kept(index, count: int, width: int) -> torch.Tensor:
    """The keys [T, D] of one head as the index keeps them."""
    stop = torch.full((1, width), count)
    return index.score(torch.eye(width)[None, None], Step(stop=stop))[0, 0].mT


def nearest(parts: torch.Tensor, centroids: torch.Tensor) -> torch.Tensor:
    """Each part [n, d], one by one, as the nearest centroid."""
    return torch.stack(
        [min(centroids, key=lambda c: float((c - part).square().sum())) for part in parts]
    )


@pytest.mark.parametrize(("m", "b", "width"), [(2, 3, 16), (4, 2, 16), (2, 6, 32)])
def test_every_part_is_the_nearest_of_at_most_2_to_the_b_centroids(m, b, width):
    keys, more = drawn(150, width), drawn(25, width, seed=1)
    index = parse(f"pqcache:m={m},b={b},iterations=30").build(keys[None, None], Step())
    index.append(more[None, None], Step())
    found = kept(index, 175, width)
    every = torch.cat([keys, more])
    for part in range(m):
        place = slice(part * width // m, (part + 1) * width // m)
        centroids = found[:150, place].unique(dim=0)
        assert len(centroids) <= 2**b
        want = nearest(every[:150, place], centroids)
        assert torch.allclose(found[:150, place], want, atol=1e-5)
        behind = nearest(more[:, place], found[:, place].unique(dim=0))
        assert torch.allclose(found[150:, place], behind, atol=1e-5)


def test_centroids_are_the_means_of_their_parts():
    """Where the rounds are enough for k-means to stand still."""
    keys = drawn(120, 16)
    found = kept(parse("pqcache:m=2,b=3,iterations=100").build(keys[None, None], Step()), 120, 16)
    for place in (slice(0, 8), slice(8, 16)):
        for centroid in found[:, place].unique(dim=0):
            own = (found[:, place] == centroid).all(1)
            assert torch.allclose(keys[own][:, place].mean(0), centroid, atol=1e-4)


def test_a_list_is_the_best_of_the_sums():
    keys, queries = drawn(180, 16), drawn(1, 3, 1, 16, seed=1)
    index = parse("pqcache").build(keys[None, None], Step())
    scores = queries[0, :, 0] @ kept(index, 180, 16).mT
    best = scores.sort(descending=True).values[:, :9]
    got = index.select(queries, 9, Step()).indices[0, :, 0]
    assert torch.allclose(scores.gather(1, got), best, atol=1e-5)
