"""Tactic, arXiv 2502.12216, sections 3 and 4: keys in clusters' order, cut where a fitted curve holds the mass."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from plainly import LENGTH, WIDTH, arrays, best, chosen, stream
from topkit.indexers.spec import parse


def kept(scores: np.ndarray, order: list[int], mass: float, exact: float, sample: int) -> int:
    """How many of an order hold the mass, by the exact weights of its head and a / x + b behind it.

    a and b make the curve's mean that of the weights at `sample` places about 10 % and 60 %. b is not let
    below 0, where weights would end: that much is this project's own.
    """
    logits = scores[order] * WIDTH**-0.5
    weights = np.exp(logits - logits.max())
    length = len(order)
    inverses, means = [], []
    for share in (0.1, 0.6):
        first = min(max(int(share * length) - 1 - sample // 2, 0), length - sample)
        inverses.append(np.mean([1 / (place + 1) for place in range(first, first + sample)]))
        means.append(weights[first : first + sample].mean())
    a = (means[0] - means[1]) / (inverses[0] - inverses[1])
    b = max(means[0] - a * inverses[0], 0)
    head = math.ceil(exact * length - 1e-9)
    curve = [weights[i] if i < head else a / (i + 1) + b for i in range(length)]
    held = np.cumsum(curve) / np.sum(curve)
    return int((held < mass).sum()) + 1


@pytest.mark.parametrize("mass", [0.5, 0.7, 0.9])
@pytest.mark.parametrize(("exact", "sample"), [(0.1, 3), (0.3, 5), (0.2, 4), (1.0, 1)])
@pytest.mark.parametrize("seed", range(2))
def test_single_keys_as_clusters(mass, exact, sample, seed):
    recipe = parse(f"tactic(mass={mass}, cluster_size=1, exact={exact}, sample={sample})")
    one = stream(recipe, seed)
    queries, keys = arrays(one)
    got = chosen(one, recipe, one.build(recipe), LENGTH)
    for head in range(4):
        scores = keys[head] @ queries[head, -1]
        order = best(scores, LENGTH)
        count = kept(scores, order, mass, exact, sample)
        assert got[head] == order[:count]


@pytest.mark.parametrize("seed", range(3))
def test_clusters_that_lie_apart(seed):
    recipe = parse("tactic(mass=0.6, cluster_size=8, exact=0.2, sample=3)")
    plain = stream(recipe, seed)
    apart = 12 * torch.randn(5, WIDTH, generator=torch.Generator().manual_seed(seed))
    blob = torch.arange(LENGTH) % 5
    one = replace(plain, keys=plain.keys + apart[blob], queries=plain.queries / 8)
    queries, keys = arrays(one)
    got = chosen(one, recipe, one.build(recipe), LENGTH)
    for head in range(4):
        scores = keys[head] @ queries[head, -1]
        centres = np.array([keys[head][blob.numpy() == n].mean(0) for n in range(5)])
        ranks = best(centres @ queries[head, -1], 5)
        order = [slot for n in ranks for slot in range(LENGTH) if slot % 5 == n]
        count = kept(scores, order, 0.6, 0.2, 3)
        assert sorted(got[head]) == sorted(order[:count])
