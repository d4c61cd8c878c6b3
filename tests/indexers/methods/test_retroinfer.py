"""RetroInfer's wave index (arXiv 2505.02922, sections 4.1 and 4.2) as a slow loop over its own clusters.

Lists are of a KV group, whose query heads rank clusters together, by the sum of their softmax over centroids.
"""

from __future__ import annotations

import math

import pytest
import torch

from topkit.contract.draw import RANDOM
from topkit.indexers.retroinfer import retroinfer
from topkit.indexers.spec import parse

SINK, WINDOW, SEGMENT, EACH, SHARE = 2, 6, 24, 4, 0.3
RECIPE = (
    f"retroinfer(per_cluster={EACH}, sink={SINK}, window={WINDOW}, update=8, segment={SEGMENT}, "
    f"estimate={SHARE}, iterations=30)"
)
LENGTH = 80


def clustered(index, row, head):
    c = index.clusters
    first, sizes, members = c.first[row, head], c.sizes[row, head], c.members[row, head]
    clusters = [members[f : f + n].tolist() for f, n in zip(first, sizes, strict=True)]
    return [cluster for cluster in clusters if cluster]


def ranked(queries, keys, clusters, scale):
    """The clusters, the best of a group's queries [G, D] first."""
    worth = torch.zeros(len(clusters), dtype=torch.float64)
    for query in queries:
        scores = [float(scale * (query @ keys[c].mean(0))) for c in clusters]
        weights = [math.exp(s - max(scores)) for s in scores]
        worth += torch.tensor(weights) / sum(weights)
    return [clusters[n] for n in worth.argsort(descending=True).tolist()]


@pytest.mark.parametrize("heads", [(4, 2), (2, 2), (3, 1)])
@pytest.mark.parametrize("k", [9, 12, 25, 50])
def test_three_zones(heads, k):
    recipe = parse(RECIPE)
    one = RANDOM(recipe, length=LENGTH, heads=heads)
    index = one.build(recipe)
    scale, group = one.keys.shape[3] ** -0.5, heads[0] // heads[1]
    got = one.ask(recipe, index, k)
    for row in range(2):
        for unit in range(heads[1]):
            keys, values = (x[row, unit].double() for x in (one.keys, one.values))
            queries = one.queries[row, unit * group : (unit + 1) * group, -1].double()
            clusters = clustered(index, row, unit)
            inside = {s for c in clusters for s in c}
            steady = [s for s in range(LENGTH) if s not in inside]
            assert {*range(SINK), *range(LENGTH - WINDOW, LENGTH)} <= set(steady)
            order = ranked(queries, keys, clusters, scale)
            apart = group if got.indices.shape[1] == heads[0] else 1
            ours = [s for s in got.indices[row, unit * apart, 0].tolist() if s >= 0]
            assert len(ours) == len(set(ours)) <= k and set(steady) <= set(ours)
            # Whole clusters in their order; of the one that k reaches, some keys or none.
            touched = [n for n, c in enumerate(order) if set(c) & set(ours)]
            assert touched == list(range(len(touched)))
            assert all(set(c) <= set(ours) for c in order[: max(len(touched) - 1, 0)])
            room = k - len(steady) - sum(map(len, order[: len(touched)]))
            assert room < len(order[len(touched)])
            rest = [[s for s in c if s not in ours] for c in order]
            rest = [c for c in rest if c]
            for head in range(group):
                check_estimates(
                    got.rest,
                    row,
                    unit * group + head,
                    rest,
                    queries[head],
                    keys,
                    values,
                    order,
                    scale,
                )


def check_estimates(rest, row, head, ahead, query, keys, values, order, scale):
    """The next clusters, each by its centroid and mean value, as often as keys of it are left."""
    logits = rest.logits[row, head, 0].double()
    real = logits > -math.inf
    count = int(real.sum())
    assert 0 < count <= len(ahead) and abs(count - SHARE * len(order)) <= 1.5
    want = []
    for left in ahead[:count]:
        whole = next(c for c in order if set(left) <= set(c))
        logit = float(scale * (query @ keys[whole].mean(0))) + math.log(len(left))
        want.append((logit, values[whole].mean(0)))
    want.sort(key=lambda pair: -pair[0])
    ours = logits[real].sort(descending=True)
    torch.testing.assert_close(
        ours.values, torch.tensor([x for x, _ in want]).double(), rtol=1e-4, atol=1e-4
    )
    shown = rest.values[row, head, 0].double()[real][ours.indices]
    torch.testing.assert_close(shown, torch.stack([v for _, v in want]), rtol=1e-4, atol=1e-4)


def test_clusters_are_of_one_segment_each():
    recipe = parse(RECIPE)
    one = RANDOM(recipe, length=LENGTH, heads=(4, 2))
    index = one.build(recipe)
    for row in range(2):
        for head in range(2):
            clusters = clustered(index, row, head)
            slots = sorted(s for c in clusters for s in c)
            assert slots == list(range(SINK, slots[-1] + 1))
            for cluster in clusters:
                assert len({(s - SINK) // SEGMENT for s in cluster}) == 1
            assert abs(len(clusters) - len(slots) / EACH) <= len(slots) / SEGMENT + 1


def test_what_carries_estimates_says_so():
    """As a rest, which no graph of a step and no combinator takes for a list of keys."""
    assert retroinfer().traits().rest and not retroinfer().traits().weighted
    assert not retroinfer(estimate=0).traits().rest
