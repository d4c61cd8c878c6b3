"""What a layer selected reaches the layers that read it: against a slow rendering, and refusals."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from generation import WAYS, Place, Slowly, assert_same, generated
from tiny import prompt, tiny
from topkit.errors import InputError
from topkit.experiments.decode.attach import attach

SPEC = "reuse(sign(), every=2)"


@pytest.fixture(scope="module")
def deep() -> Any:
    return tiny(num_hidden_layers=3)


class Reusing(Slowly):
    """A model whose odd layers attend to the slots that the layer below chose, query by query."""

    def __init__(self, model: Any, k: float, until: int) -> None:
        super().__init__(model, "sign()", k, until)
        self.below: dict[Place, list[int]] = {}

    def kept(self, layer: int, place: Place, query: Tensor, keys: Tensor, stop: int) -> list[int]:
        if layer % 2 == 0:
            k = int(self.k) if self.k >= 1 else math.ceil(self.k * stop)
            self.below[place] = self.choose(query, keys, k)
        return self.below[place]


@pytest.mark.parametrize("way", WAYS)
def test_generates_by_the_definition(deep: Any, way: str) -> None:
    given = prompt(2, padded=True)
    with Reusing(deep, 6, until=24):
        slow = generated(deep, given, 8, **WAYS[way])
    with attach(deep, SPEC, k=6):
        fast = generated(deep, given, 8, **WAYS[way])
    assert_same(fast, slow)
    with attach(deep, "sign()", k=6):
        own = generated(deep, given, 8, **WAYS[way])
    assert max((a - b).abs().max() for a, b in zip(own[1], fast[1], strict=True)) > 1e-2


@pytest.mark.parametrize(("k", "share"), [("25%", 0.25), (5, 5)])
def test_several_queries_at_once_and_shares_of_what_each_sees(
    deep: Any, k: Any, share: Any
) -> None:
    ids = prompt()["input_ids"]
    with torch.no_grad():
        with Reusing(deep, share, until=9):
            slow = deep(ids).logits
        with attach(deep, SPEC, k=k, sparse_from_slot=9):
            fast = deep(ids).logits
    torch.testing.assert_close(fast, slow, rtol=1e-4, atol=1e-4)


def test_what_is_observed_of_a_layer_that_reuses_is_its_own_recall(deep: Any) -> None:
    with attach(deep, SPEC, k=6, observe=True) as attached:
        generated(deep, prompt(), 4)
    rows = attached.fidelity().to_pylist()
    cost = {n: {r["bytes_read"] for r in rows if r["layer"] == n} for n in range(3)}
    assert cost[1] == {0} and 0 not in cost[0] | cost[2]
    assert {r["kept"] for r in rows} == {6}
    held = {n: {r["index_bytes"] for r in rows if r["layer"] == n} for n in range(3)}
    assert held[1] == {0} and 0 not in held[0]


def test_a_source_that_is_not_attached_is_refused_before_anything_runs(deep: Any) -> None:
    with pytest.raises(InputError, match=r"reads in layer 1 what layer 0 selected, .* name source"):
        attach(deep, SPEC, k=6, layers=[1, 2])
    with attach(deep, "reuse(sign(), layers=(1,))", k=6, layers=[1, 2]):
        generated(deep, prompt(), 3)


def test_indices_of_a_capture_are_refused_where_there_is_none(deep: Any, tmp_path: Any) -> None:
    from safetensors.torch import save_file

    save_file({"0.indices": torch.zeros(3, 2, dtype=torch.int32)}, tmp_path / "x.safetensors")
    with pytest.raises(InputError, match="samples of a capture, which `topkit measure` reads"):
        attach(deep, f"indices(file='{tmp_path / 'x.safetensors'}')", k=6)
