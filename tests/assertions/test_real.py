"""Real tensors for gates: the file's, by their true layers, and what is made of them."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from topkit.assertions.real import FILE
from topkit.errors import InputError
from topkit.testing import REAL_KINDS, REAL_LAYERS, assert_selects, real_tensors


def test_they_are_the_layers_of_the_file() -> None:
    whole = load_file(FILE)
    assert REAL_LAYERS == (1, 8, 15, 22, 29) and len(whole["keys"]) == len(REAL_LAYERS)
    for at, layer in enumerate(REAL_LAYERS):
        one = real_tensors(layer)
        assert torch.equal(one.keys, whole["keys"][at : at + 1].float())
        assert torch.equal(one.queries, whole["queries"][at : at + 1].float())
        assert (one.layer, one.kind, one.scaling) == (layer, "captured", 0.125)


def test_queries_of_a_group_take_turns() -> None:
    one, three = real_tensors(22), real_tensors(22, queries=3)
    assert three.queries.shape == (1, 9, 3, 64)
    assert torch.equal(three.queries[:, :, -1:], one.queries)
    for head in range(9):
        first = head // 3 * 3
        group = {tuple(q.tolist()) for q in one.queries[0, first : first + 3, 0]}
        assert {tuple(q.tolist()) for q in three.queries[0, head]} == group


@pytest.mark.parametrize("layer", REAL_LAYERS)
@pytest.mark.parametrize("kind", REAL_KINDS)
def test_they_are_the_same_always_and_exact_in_bfloat16(layer: int, kind: str) -> None:
    one, again = (real_tensors(layer, kind, tokens=500) for _ in range(2))
    assert torch.equal(one.keys, again.keys) and torch.equal(one.queries, again.queries)
    for x in (one.queries, one.keys):
        assert torch.equal(x.bfloat16().float(), x) and x.half().isfinite().all()
    one.keys.zero_()
    assert torch.equal(real_tensors(layer, kind, tokens=500).keys, again.keys)


@pytest.mark.parametrize("k", [32, 128, 1024])
def test_each_kind_has_what_it_is_named_for(k: int) -> None:
    ties = dict.fromkeys(REAL_KINDS, 0)
    for layer in (1, 15, 29):
        for kind in REAL_KINDS:
            one = real_tensors(layer, kind)
            summary = assert_selects(one.scores.topk(k).indices, one.scores, scaling=one.scaling)
            ties[kind] += summary.ties
    assert ties["captured"] <= 1 and ties["ties"] > 18 and ties["plateau"] > 18


def test_ties_are_exact_plateaus_wide_and_outliers_far() -> None:
    for layer in REAL_LAYERS:
        one = real_tensors(layer, "ties")
        assert torch.equal(one.scores, one.scores.round())
        plateau = real_tensors(layer, "plateau").keys
        assert torch.equal(plateau[:, :, 1::2], plateau[:, :, 1:2].expand(-1, -1, 2047, -1))
        captured, far = real_tensors(layer).keys, real_tensors(layer, "outliers").keys
        assert far[:, :, 1365].norm(dim=-1).min() > 20 * captured.norm(dim=-1).median()
        channels = far.square().mean((0, 2)).sqrt()
        assert (channels.amax(-1) / channels.median(-1).values).min() > 8


def test_scores_hide_what_is_behind_a_query() -> None:
    one = real_tensors(8, queries=3, tokens=20)
    assert (
        repr(one)
        == "Real(layer 8, captured: queries [1, 9, 3, 64], keys [1, 3, 20, 64], scaling 0.125)"
    )
    assert one.scores.shape == (1, 9, 3, 20)
    assert (one.scores == -torch.inf).sum(-1).tolist() == [[[2, 1, 0]] * 9]
    head = one.scores[0, 4, 2]
    assert torch.allclose(head, one.keys[0, 1] @ one.queries[0, 4, 2], atol=1e-4)
    assert assert_selects(one.scores.topk(4).indices, queries=one.queries, keys=one.keys).rows == 27


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"layer": 0}, "layer must be one of 1, 8, 15, 22, 29; got 0"),
        ({"kind": "gaussian"}, "kind must be one of captured, ties, plateau, outliers"),
        ({"queries": 4}, "queries at most 3"),
        ({"queries": 0}, "queries must be at least 1"),
        ({"tokens": 4096}, "tokens must be at most 4095"),
        ({"tokens": 2, "queries": 3}, "queries at most 3 and the tokens"),
        ({"tokens": 2.5}, "tokens must be a whole number"),
    ],
)
def test_what_is_not_there_is_refused(how: dict, said: str) -> None:
    with pytest.raises(InputError, match=said):
        real_tensors(**{"layer": 15, **how})
