"""Squeezed Attention (arXiv 2411.09688, section 3) as a slow loop over its own clusters and threshold."""

from __future__ import annotations

from typing import Any

import torch

from topkit.contract.draw import RANDOM
from topkit.indexers.spec import parse

PROMPT, LENGTH, WINDOW, SHARE = 80, 84, 6, 0.2


def clustered(index, row, head):
    c = index.clusters
    first, sizes, members = c.first[row, head], c.sizes[row, head], c.members[row, head]
    return [members[f : f + n].tolist() for f, n in zip(first, sizes, strict=True)]


def shares(query, keys, clusters, scale):
    """exp(q . c) over the sum of all, each centroid as often as it has keys: what one of its keys may weigh."""
    weights = [float(torch.exp(scale * (query @ keys[c].mean(0)))) for c in clusters]
    total = sum(w * len(c) for w, c in zip(weights, clusters, strict=True))
    return [w / total for w in weights]


def test_keeps_the_clusters_above_the_threshold():
    recipe = parse(f"squeezed(share={SHARE}, window={WINDOW}, sparsity=0.6, iterations=30)")
    one = RANDOM(recipe, length=LENGTH, heads=(4, 2))
    index: Any = one.build(recipe, [PROMPT, LENGTH])
    scale, kept, there = one.keys.shape[3] ** -0.5, 0, 0
    got = one.ask(recipe, index, LENGTH).indices
    for row in range(2):
        threshold = float(index.extra["threshold"].flatten()[row])
        for head in range(4):
            keys = one.keys[row, head // 2].double()
            query = one.queries[row, head, -1].double()
            clusters = [c for c in clustered(index, row, head // 2) if c]
            inside = {s for c in clusters for s in c}
            assert abs(len(clusters) - SHARE * len(inside)) <= 1
            newer = set(range(LENGTH)) - inside
            assert set(range(LENGTH - WINDOW, LENGTH)) <= newer
            share = shares(query, keys, clusters, scale)
            want = newer | {
                s for c, x in zip(clusters, share, strict=True) if x > threshold for s in c
            }
            assert {s for s in got[row, head, 0].tolist() if s >= 0} == want
            kept, there = kept + len(want - newer), there + len(inside)
    assert 0 < kept < there


def test_the_threshold_leaves_out_a_share_of_the_keys_by_their_mean_over_the_prompts_queries():
    for sparsity in (0.3, 0.7):
        recipe = parse(f"squeezed(share={SHARE}, window={WINDOW}, sparsity={sparsity})")
        one = RANDOM(recipe, length=PROMPT, heads=(4, 2), rows=2)
        index: Any = one.build(recipe)
        scale = one.keys.shape[3] ** -0.5
        for row in range(2):
            threshold, mean = float(index.extra["threshold"].flatten()[row]), []
            for head in range(4):
                keys = one.keys[row, head // 2].double()
                clusters = [c for c in clustered(index, row, head // 2) if c]
                asked = one.queries[row, head, -WINDOW:].double()
                share = torch.tensor([shares(query, keys, clusters, scale) for query in asked])
                for cluster, x in zip(clusters, share.mean(0).tolist(), strict=True):
                    mean += [x] * len(cluster)
            out = sum(x < threshold for x in mean) / len(mean)
            assert abs(out - sparsity) <= 8 / len(mean), (out, sparsity)  # a cluster's keys tie
