"""Attached to nothing but its own cache and graph, a model says what it said before."""

from __future__ import annotations

from typing import Any

import pytest

from generation import WAYS, assert_same, generated
from tiny import prompt, tiny
from topkit.experiments.decode.attach import attach


@pytest.mark.parametrize("way", WAYS)
def test_dense_in_an_indexers_place_changes_no_token(way: str) -> None:
    model, given = tiny(), prompt(2, padded=True)
    how: dict[str, Any] = WAYS[way]
    want = generated(model, given, **how)
    with attach(model, "dense", k=None):
        ours = generated(model, given, **how)
    assert_same(ours, want)
