"""Forced keys that leave base nothing to choose are said, once."""

import warnings

import pytest
import torch

from topkit.indexers import Cache, Step
from topkit.indexers.spec import parse


def select(spec, k, length=40):
    recipe, keys = parse(spec), torch.randn(1, 2, length, 8)
    step = Step(kv_heads=2, inputs={"cache": Cache(keys)}).given_to(recipe)
    return recipe.build(keys, step).select(torch.randn(1, 4, 1, 8), k, step)


def test_forced_keys_that_fill_k_are_said_once():
    spec = "keep(sign(), sink=5, window=6)"
    with pytest.warns(
        UserWarning, match=r"its 11 forced keys fill k = 11, so that sign\(\) chooses"
    ):
        select(spec, 11)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        select(spec, 11)
        select(spec, 12)
        select(spec, 40)  # all that there is
