"""Recipes that weigh keys weigh them as the model's softmax does, with its sinks and its softcap, by plain loops."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from topkit.indexers.base import Cache, Step
from topkit.indexers.clusters import centroid_scores
from topkit.indexers.spec import parse
from topkit.indexers.votes import prompt_votes
from topkit.kernels.gather_attention import PLAIN, Softmax, attend_all, gather_attention

HEADS, LENGTH, WIDTH, CAP = 4, 24, 8, 1.5
SCALING = 0.4
SINKS = torch.tensor([0.5, -3.0, 4.0, 1.5])
KINDS = {"sinks": Softmax(SINKS), "softcap": Softmax(softcap=CAP), "both": Softmax(SINKS, CAP)}


def drawn(count: int, seed: int = 0, values: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    shapes = (1, HEADS, count, WIDTH), (1, 2, LENGTH, WIDTH), (1, 2, LENGTH, WIDTH)
    a, b, c = (torch.randn(shape, generator=g) for shape in shapes)
    return a, b, c


def weights_of(
    query: Tensor, keys: Tensor, head: int, softmax: Softmax, beside: bool = True
) -> list[float]:
    """The weight of each key, a sink's left out; `beside`: it takes its own."""
    logits = [SCALING * float(query.double() @ key.double()) for key in keys]
    if softmax.softcap:
        logits = [softmax.softcap * math.tanh(x / softmax.softcap) for x in logits]
    each = [math.exp(x) for x in logits]
    sink = softmax.sinks is not None and beside
    total = sum(each) + (math.exp(float(softmax.sinks[head])) if sink else 0)  # type: ignore[index]
    return [x / total for x in each]


def step(keys: Tensor, values: Tensor, softmax: Softmax, **inputs: Any) -> Step:
    given = {"cache": Cache(keys, values), "values": values, **inputs}
    return Step(scaling=SCALING, kv_heads=2, inputs=given, softmax=softmax)


def selected(spec: str, softmax: Softmax, k: int = LENGTH) -> tuple[Any, Tensor, Tensor, Tensor]:
    queries, keys, values = drawn(1)
    recipe, own = parse(spec), step(keys, values, softmax)
    index = recipe.build(keys, own.given_to(recipe))
    return index.select(queries, k, own.given_to(recipe)), queries, keys, values


@pytest.fixture(params=KINDS)
def softmax(request: Any) -> Softmax:
    return KINDS[request.param]


def test_votes_are_the_weights_of_the_model(softmax: Softmax) -> None:
    queries, keys, values = drawn(5)
    votes = prompt_votes(queries, keys, step(keys, values, softmax))
    for head in range(HEADS):
        wanted = [0.0] * LENGTH
        for i in range(5):
            seen = keys[0, head // 2, : LENGTH - 4 + i]
            for slot, weight in enumerate(weights_of(queries[0, head, i], seen, head, softmax)):
                wanted[slot] += weight
        assert votes[0, head].tolist() == pytest.approx(wanted, abs=1e-5)


@pytest.mark.parametrize("spec", ["top_p(exact(), mass=0.6)", "twilight(exact(), mass=0.6)"])
def test_mass_is_of_what_the_keys_have_among_themselves(spec: str, softmax: Softmax) -> None:
    if spec.startswith(
        "twilight"
    ):  # whose estimates are of rounded keys: all that counts is that a cap shows
        counts = [(selected(spec, one)[0].indices >= 0).sum() for one in (softmax, PLAIN)]
        assert (counts[0] > counts[1]) == (softmax.softcap is not None)
        return
    chosen, queries, keys, _ = selected(spec, softmax)
    for head in range(HEADS):
        weights = weights_of(queries[0, head, 0], keys[0, head // 2], head, softmax, beside=False)
        order = sorted(range(LENGTH), key=lambda slot: -weights[slot])
        fewest = next(n for n in range(1, LENGTH + 1) if sum(weights[s] for s in order[:n]) >= 0.6)
        own = chosen.indices[0, head, 0]
        assert own[own >= 0].tolist() == order[:fewest]


def test_sparq_gives_the_mean_value_what_the_keys_left_out_have(softmax: Softmax) -> None:
    """Of all channels its scores are exact: its output is then that of all keys, those left out by their mean."""
    chosen, queries, keys, values = selected("sparq(channels=8, window=0)", softmax, k=5)
    rest = chosen.rest
    given: Any = {"rest_values": rest.values, "rest_share": rest.share, "softmax": softmax}
    out = gather_attention(queries, keys, values, chosen.indices, scaling=SCALING, **given)
    for head in range(HEADS):
        weights = weights_of(queries[0, head, 0], keys[0, head // 2], head, softmax)
        own, mean = chosen.indices[0, head, 0].tolist(), values[0, head // 2].mean(0)
        wanted = sum(
            w * (values[0, head // 2, s] if s in own else mean) for s, w in enumerate(weights)
        )
        torch.testing.assert_close(out[0, head, 0], wanted, rtol=1e-4, atol=1e-5)


def test_adakv_keeps_the_heaviest_of_the_layer(softmax: Softmax) -> None:
    chosen, queries, keys, _ = selected("adakv(exact(), part=0.25, safeguard=0)", softmax)
    every = [
        (-weight, head, slot)
        for head in range(HEADS)
        for slot, weight in enumerate(
            weights_of(queries[0, head, 0], keys[0, head // 2], head, softmax)
        )
    ]
    kept = {(head, slot) for _, head, slot in sorted(every)[: LENGTH // 4 * HEADS]}
    lists = chosen.indices[0, :, 0].tolist()
    assert {(h, s) for h, slots in enumerate(lists) for s in slots if s >= 0} == kept


def test_a_step_of_h2o_votes_by_the_weights_of_the_model(softmax: Softmax) -> None:
    queries, keys, values = drawn(1)
    recipe = parse("h2o")
    own = step(keys, values, softmax, prefill_queries=queries).given_to(recipe)
    index: Any = recipe.build(keys, own)
    votes = index.kept[next(iter(index.kept))].votes.clone()
    index.select(queries, LENGTH, own)
    more = index.kept[LENGTH].votes - votes
    for head in range(HEADS):
        wanted = weights_of(queries[0, head, 0], keys[0, head // 2], head, softmax)
        assert more[0, head].tolist() == pytest.approx(wanted, abs=1e-5)


def test_a_sink_is_part_of_the_sum_that_vattention_keeps() -> None:
    """So that beside a large one the first sample is all that the bound asks."""
    spec = "vattention(epsilon=0.05, delta=0.2, heavy=0.1, sample=0.1, sink=1, window=1)"
    counts = [
        (selected(spec, one)[0].indices >= 0).sum(-1)[0, :, 0].tolist()
        for one in (PLAIN, Softmax(torch.tensor([-math.inf, -60.0, 60.0, 60.0])))
    ]
    assert counts[1][:2] == counts[0][:2] and max(counts[1][2:]) < min(counts[0][2:])


def test_a_softcap_makes_the_curve_of_tactic_more_even() -> None:
    spec = "tactic(mass=0.6, cluster_size=2)"
    plain, even = (
        (selected(spec, one)[0].indices >= 0).sum(-1)[0, :, 0]
        for one in (PLAIN, Softmax(softcap=1e-3))
    )
    # Where all weigh alike, six tenths of the mass are six tenths of the keys.
    assert even.tolist() == [math.ceil(0.6 * LENGTH)] * HEADS and (plain < even).any()


@pytest.mark.parametrize(
    "spec",
    ["squeezed(share=0.3, sparsity=0, window=4)", "retroinfer(per_cluster=4, sink=0, window=0)"],
)
def test_clusters_are_weighed_as_the_keys_of_the_model(spec: str, softmax: Softmax) -> None:
    queries, keys, values = drawn(1)
    recipe: Any = parse(spec)
    own = step(keys, values, softmax, prefill_queries=drawn(LENGTH, seed=2)[0])
    own = own.given_to(recipe)
    index = recipe.build(keys, own)
    clusters, squeezed = index.clusters, spec.startswith("squeezed")
    sizes = clusters.by_list(clusters.sizes, HEADS)[0].tolist()
    centroids, wanted = centroid_scores(queries, clusters)[0, :, 0].tolist(), list[list[float]]()
    for head in range(HEADS):
        logits = [SCALING * x for x in centroids[head]]
        if softmax.softcap:
            logits = [softmax.softcap * math.tanh(x / softmax.softcap) for x in logits]
        each = [math.exp(x) for x in logits]
        there = sizes[head] if squeezed else [1] * len(each)
        total = sum(n * x for n, x in zip(there, each, strict=True))
        total += 0 if softmax.sinks is None else math.exp(float(softmax.sinks[head]))
        wanted.append([x / total for x in each])
    assert len(wanted[0]) > 1
    scores = recipe.score(queries, index, own)[0, :, 0]
    if squeezed:
        kept = scores > -math.inf
        assert kept.any()
        torch.testing.assert_close(
            scores.exp()[kept], torch.tensor(wanted)[kept], rtol=1e-4, atol=1e-6
        )
    else:
        by_group = torch.tensor(wanted).view(2, 2, -1).sum(1)
        torch.testing.assert_close(scores, by_group, rtol=1e-4, atol=1e-6)


def test_retroinfer_s_pseudo_keys_have_capped_logits(softmax: Softmax) -> None:
    """Clusters of equal keys: what they stand for is then what attention gives, with all keys estimated or read."""
    queries, keys, values = drawn(1)
    keys = keys[:, :, :6].repeat_interleave(4, 2)
    recipe = parse("retroinfer(per_cluster=4, sink=0, window=0, estimate=1.0)")
    own = step(keys, values, softmax, prefill_queries=queries).given_to(recipe)
    chosen = recipe.build(keys, own).select(queries, 8, own)
    assert chosen.rest is not None and chosen.rest.logits is not None
    rest: Any = {"rest_values": chosen.rest.values, "rest_logits": chosen.rest.logits}
    given: Any = {"scaling": SCALING, "softmax": softmax}
    out = gather_attention(queries, keys, values, chosen.indices, **given, **rest)
    torch.testing.assert_close(
        out, attend_all(queries, keys, values, **given), rtol=1e-4, atol=1e-5
    )
