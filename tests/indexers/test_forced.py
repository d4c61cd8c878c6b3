"""Recipes whose sinks and window fill a list say so, once, and nothing where a key is left to choose."""

from __future__ import annotations

import warnings

import pytest
import torch

from topkit.indexers.base import Cache, Step
from topkit.indexers.spec import parse

RECIPES = (
    "keep(sign(), sink=2, window=4)",
    "clusterkv(per_cluster=4, sink=6, update=4)",
    "magicpig(bits=2, tables=6, sink=2, window=4)",
    "vattention(exact(), epsilon=0.3, delta=0.2, sink=2, window=4)",
)


def select(spec: str, k: int, length: int = 64) -> None:
    recipe = parse(spec)
    keys, queries = torch.randn(1, 2, length, 8), torch.randn(1, 2, 1, 8)
    inputs = {"cache": Cache(keys, keys)}
    step = Step(scaling=0.3, kv_heads=2, inputs=inputs).given_to(recipe)
    recipe.build(keys, step).select(queries, k, step)


@pytest.mark.parametrize("spec", RECIPES)
def test_forced_keys_that_fill_k_are_said_once(spec: str) -> None:
    with pytest.warns(UserWarning, match="its 6 forced keys fill k = 6, so that"):
        select(spec, 6)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        select(spec, 6)
        select(spec, 7)
        select(spec, 64)  # all that there is
