"""Clusters of keys: found alike in any batch, renewed while decoding, and estimated by their means."""

from __future__ import annotations

import warnings
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from topkit.indexers import Cache, Step
from topkit.indexers.clustered import ClusteredIndex
from topkit.indexers.kmeans import drawn, kmeans, plus_plus, spread
from topkit.indexers.spec import parse
from topkit.indexers.squeezed import quantile

COUNTS = torch.tensor([40, 23])
POSITIONS = torch.arange(40).expand(2, -1)


def blobs(seed=0):
    """Four heaps of ten points each in two rows and three heads, and the heap of each point."""
    generator = torch.Generator().manual_seed(seed)
    middles = 10 * torch.eye(8)[:4]
    heap = torch.arange(40) % 4
    return middles[heap] + torch.randn(2, 3, 40, 8, generator=generator), heap


def selected(spec, keys, queries, cuts, k):
    recipe = parse(spec)

    def step(first, stop):
        inputs = {"cache": Cache(keys[:, :, :stop], keys[:, :, :stop])}
        return Step(scaling=0.3, kv_heads=keys.shape[1], inputs=inputs).given_to(recipe)

    index = recipe.build(keys[:, :, : cuts[0]], step(0, cuts[0]))
    for first, stop in pairwise(cuts):
        index.append(keys[:, :, first:stop], step(first, stop))
    assert isinstance(index, ClusteredIndex)
    return index, index.select(queries, k, step(0, cuts[-1]))


@pytest.mark.parametrize("by", ["cosine", "distance"])
def test_heaps_are_found_and_a_row_has_the_clusters_that_it_has_alone(by):
    points, heap = blobs()
    points[1, :, 23:] = torch.nan
    four = torch.tensor([4, 4])
    first = plus_plus(points.nan_to_num(1e9), POSITIONS, COUNTS, four, Step(seed=3))
    labels = kmeans(points.nan_to_num(1e9), COUNTS, first, iterations=10, by=by)
    assert (labels[1, :, 23:] == -1).all()
    for head in range(3):
        pairs = set(zip(labels[0, head].tolist(), heap.tolist(), strict=True))
        assert len(pairs) == 4, "each heap is a cluster"
    one = torch.tensor([23])
    alone = plus_plus(points[1:, :, :23], POSITIONS[1:, :23], one, four[1:], Step(seed=3))
    same = kmeans(points[1:, :, :23], one, alone, iterations=10, by=by)
    assert torch.equal(same, labels[1:, :, :23])


def test_what_is_drawn_depends_on_seed_layer_and_position_alone():
    four = torch.tensor([4, 4])

    def first(step, positions=POSITIONS):
        return drawn(positions, COUNTS, four, step)

    assert torch.equal(first(Step(seed=1)), first(Step(seed=1)))
    assert not torch.equal(first(Step(seed=1)), first(Step(seed=2)))
    assert not torch.equal(first(Step(seed=1)), first(Step(seed=1, layer=1)))
    assert not torch.equal(first(Step(seed=1)), first(Step(seed=1), POSITIONS + 7))
    assert all(len(set(row.tolist())) == 4 for row in first(Step())[:, 0])
    assert spread(COUNTS, four)[:, 0].tolist() == [[5, 15, 25, 35], [2, 8, 14, 20]]


def test_appended_keys_wait_and_are_then_clustered_among_themselves():
    torch.manual_seed(0)
    keys, queries = torch.randn(1, 2, 40, 16), torch.randn(1, 4, 1, 16)
    spec = "clusterkv(per_cluster=4, sink=2, update=8)"
    index, found = selected(spec, keys, queries, [20, 27], 9)
    assert index.clusters.count == 4 and index.closed == 20
    assert found.indices[0, 0, 0].tolist() == [0, 1, 26, 25, 24, 23, 22, 21, 20]
    index, found = selected(spec, keys, queries, [20, 27, 28], 9)
    assert index.clusters.count == 6 and index.closed == 28
    assert sorted(index.clusters.members[0, 0, 20:].tolist()) == list(range(20, 28))
    assert found.indices[0, 0, 0].tolist()[:2] == [0, 1]
    one_by_one = selected(spec, keys, queries, list(range(20, 41)), 9)
    at_once = selected(spec, keys, queries, [20, 40], 9)
    assert torch.equal(one_by_one[1].indices, at_once[1].indices)


def test_clusters_of_equal_keys_are_estimated_without_an_error():
    torch.manual_seed(0)
    kinds = torch.randn(1, 2, 6, 16)
    keys = kinds[:, :, torch.arange(48) // 8]
    queries = torch.randn(1, 4, 1, 16)
    spec = "retroinfer(per_cluster=8, sink=0, window=0, update=0, estimate=1.0)"
    _, found = selected(spec, keys, queries, [48], 10)
    scores = 0.3 * queries @ keys.repeat_interleave(2, 1).mT
    kept = scores.gather(-1, found.indices.repeat_interleave(2, 1).clamp_min(0))
    kept = kept.masked_fill(found.indices.repeat_interleave(2, 1) < 0, -torch.inf)
    assert (found.indices >= 0).sum(-1).tolist() == [[[8], [8]]], "no cluster is cut"
    assert found.rest is not None and found.rest.logits is not None
    whole = torch.cat([kept, found.rest.logits], -1)
    torch.testing.assert_close(whole.logsumexp(-1), scores.logsumexp(-1))
    output = whole.softmax(-1)[..., None] * torch.cat(
        [
            keys.repeat_interleave(2, 1).gather(
                2,
                found.indices.repeat_interleave(2, 1)[:, :, 0, :, None]
                .clamp_min(0)
                .expand(-1, -1, -1, 16),
            )[:, :, None],
            found.rest.values,
        ],
        3,
    )
    torch.testing.assert_close(output.sum(3), scores.softmax(-1) @ keys.repeat_interleave(2, 1))


def test_a_cut_build_estimates_what_is_left_of_its_clusters():
    torch.manual_seed(0)
    keys, queries = torch.randn(1, 2, 48, 16), torch.randn(1, 2, 1, 16)
    spec = "retroinfer(per_cluster=4, sink=1, window=4, update=8, estimate=1.0)"
    index, _ = selected(spec, keys, queries, [48], 8)
    recipe = parse(spec)
    inputs = {"cache": Cache(keys[:, :, :30], keys[:, :, :30])}
    index.truncate(30, Step(inputs=inputs).given_to(recipe))
    clusters = index.clusters
    assert clusters.values is not None
    assert int(clusters.members.max()) == 29 and index.closed == 30
    for head in range(2):
        for first, size, mean in zip(
            *(x[0, head] for x in (clusters.first, clusters.sizes, clusters.values)), strict=True
        ):
            own = clusters.members[0, head, first : first + size].long()
            if size:
                torch.testing.assert_close(mean, keys[0, head, own].mean(0))


def test_a_quantile_of_weighed_values_is_that_of_repeated_ones():
    torch.manual_seed(0)
    values = torch.rand(3, 12).double()
    weights = torch.randint(0, 5, (3, 12))
    for at in (0.0, 0.3, 0.77, 1.0):
        for row in range(3):
            whole = values[row].repeat_interleave(weights[row])
            want = whole.quantile(at)
            got = quantile(values[row : row + 1], weights[row : row + 1], at)
            torch.testing.assert_close(got[0], want)


def test_a_step_counts_what_it_reads_of_clusters():
    torch.manual_seed(0)
    keys, queries = torch.randn(1, 2, 40, 16), torch.randn(1, 4, 1, 16)
    index, found = selected("clusterkv(per_cluster=4, sink=0, update=0)", keys, queries, [40], 6)
    there = int((index.clusters.sizes > 0).sum())
    assert float(found.keys_scored) == there / 2
    assert float(found.bytes_read) == there * (16 * 4 + 8) + 4 * 6 * 4
    step = replace(Step(scaling=0.3, kv_heads=2, counted=False), inputs={"cache": Cache(keys)})
    assert index.select(queries, 6, step).bytes_read == 0


def test_a_window_that_fills_k_is_said_once():
    generator = torch.Generator().manual_seed(0)
    keys, queries = (torch.randn(1, 2, n, 8, generator=generator) for n in (40, 1))
    spec = "clusterkv(per_cluster=4, sink=5, update=4)"
    with pytest.warns(UserWarning, match=r"its 5 forced keys fill k = 5, so that no cluster"):
        selected(spec, keys, queries, [40], 5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for k in (5, 6):
            selected(spec, keys, queries, [40], k)
