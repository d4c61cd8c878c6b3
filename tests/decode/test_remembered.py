"""What keeps votes, lists or a graph of the prompt decodes through attach; with all keys it is dense."""

from __future__ import annotations

from typing import Any

import pytest

from generation import assert_same, generated
from tiny import prompt
from topkit.experiments.decode.attach import attach

WHOLE = [
    "h2o()",
    "snapkv(window=4)",
    "retrieval_attention()",
    "previous(sign(), every=3)",
    "twilight(exact(), mass=1.0, candidates=1.0)",
    "tactic(mass=1.0, cluster_size=4)",
    "tidaldecode(layers=(0,))",
]


@pytest.mark.parametrize("spec", WHOLE)
def test_with_all_keys_it_is_dense(model: Any, spec: str) -> None:
    for given, way in ((prompt(2, padded=True), {}), (prompt(), {"num_beams": 2})):
        dense = generated(model, given, **way)
        with attach(model, spec, k=1000):
            assert_same(generated(model, given, **way), dense)


@pytest.mark.parametrize("spec", ["h2o()", "snapkv(window=4)", "previous(sign(), every=3)"])
def test_a_budget_in_per_cent_goes_on_as_it_grows(model: Any, spec: str) -> None:
    with attach(model, spec, k="20%"):
        few = generated(model, prompt())
    with attach(model, spec, k="100%"):
        assert_same(generated(model, prompt()), generated(model, prompt()))
    assert few[0].shape[1] == 24 + 12
