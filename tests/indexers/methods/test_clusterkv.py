"""ClusterKV (arXiv 2412.03213, section 4) as a slow loop over its own clusters, which are a fixed point."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from plainly import best
from topkit.contract.draw import RANDOM
from topkit.indexers.spec import parse

PROMPT, LENGTH, SINK, UPDATE, EACH = 47, 62, 3, 6, 5
RECIPE = f"clusterkv(per_cluster={EACH}, sink={SINK}, update={UPDATE}, iterations=50)"


def clustered(index: object, row: int, head: int) -> list[list[int]]:
    """The slots of each cluster."""
    c = index.clusters  # type: ignore[attr-defined]
    first, sizes, members = c.first[row, head], c.sizes[row, head], c.members[row, head]
    return [members[f : f + n].tolist() for f, n in zip(first, sizes, strict=True)]


def chosen(query: Tensor, keys: Tensor, clusters: list[list[int]], k: int, length: int) -> set[int]:
    """Sinks, keys that are in no cluster yet, and then whole clusters, the best first, the last one cut."""
    inside = {slot for cluster in clusters for slot in cluster}
    selected = list(range(min(SINK, length)))
    selected += [s for s in range(length) if s not in inside and s not in selected]
    score = [float(query.double() @ keys[c].double().mean(0)) for c in clusters]
    for c in best(score):
        selected += clusters[c]
    return set(selected[:k])


@pytest.mark.parametrize("grow", ["at once", "one by one"])
def test_selects_by_the_scores_of_centroids(grow: str) -> None:
    recipe = parse(RECIPE)
    one = RANDOM(recipe, length=LENGTH, heads=(4, 2))
    cuts = [PROMPT, LENGTH] if grow == "at once" else [PROMPT, *range(PROMPT + 1, LENGTH + 1)]
    index: Any = one.build(recipe, cuts)
    for k in (4, 9, 20, 33, 62):
        got = one.ask(recipe, index, k).indices
        for row in range(2):
            for head in range(4):
                keys = one.keys[row, head // 2, :LENGTH]
                clusters = clustered(index, row, head // 2)
                want = chosen(one.queries[row, head, -1], keys, clusters, k, LENGTH)
                ours = [s for s in got[row, head, 0].tolist() if s >= 0]
                # Which keys of the last cluster are cut is not the paper's to say.
                assert len(ours) == len(set(ours)) == min(k, LENGTH)
                assert last_cluster_apart(set(ours), want, clusters) <= 1


def last_cluster_apart(ours: set[int], want: set[int], clusters: list[list[int]]) -> int:
    """In how many clusters two selections differ."""
    return sum(bool((ours ^ want) & set(cluster)) for cluster in clusters) + bool(
        (ours ^ want) - {slot for cluster in clusters for slot in cluster}
    )


def test_clusters_are_a_fixed_point_by_the_angle() -> None:
    recipe = parse(RECIPE)
    one = RANDOM(recipe, length=LENGTH, heads=(4, 2))
    index: Any = one.build(recipe, [PROMPT])
    for row in range(2):
        for head in range(2):
            keys = one.keys[row, head].double()
            clusters = [c for c in clustered(index, row, head) if c]
            assert sorted(s for c in clusters for s in c) == list(range(SINK, PROMPT))
            assert abs(len(clusters) - (PROMPT - SINK) / EACH) < 2
            means = torch.stack([keys[c].mean(0) for c in clusters])
            unit = means / means.norm(dim=-1, keepdim=True)
            for number, cluster in enumerate(clusters):
                near = keys[cluster] @ unit.T
                assert bool((near.argmax(-1) == number).all())
                mean = index.clusters.centroids[row, head].double()
                assert float((mean - means[number]).abs().amax(-1).min()) < 1e-5


def test_new_keys_wait_for_an_update_and_then_make_clusters_of_their_own() -> None:
    recipe = parse(RECIPE)
    one = RANDOM(recipe, length=LENGTH, heads=(2, 1))
    index: Any = one.build(recipe, [PROMPT])
    before = clustered(index, 0, 0)
    for length in range(PROMPT + 1, LENGTH + 1):
        one.append(recipe, index, length)
        clusters = clustered(index, 0, 0)
        done = (length - PROMPT) // UPDATE * UPDATE
        inside = {s for c in clusters for s in c}
        assert inside == set(range(SINK, PROMPT + done))
        assert [c for c in clusters if c and max(c) < PROMPT] == [c for c in before if c]
        new = [c for c in clusters if c and min(c) >= PROMPT]
        assert len(new) <= done // UPDATE * math.ceil(UPDATE / EACH)
        assert all(
            not {a for s in c if (a := (s - PROMPT) // UPDATE) and a != (c[0] - PROMPT) // UPDATE}
            for c in new
        )
        waiting = set(range(PROMPT + done, length))
        assert waiting <= set(one.ask(recipe, index, SINK + UPDATE).indices[0, 0, 0].tolist())
