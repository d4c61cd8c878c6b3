"""What an index keeps in memory is what it says."""

from __future__ import annotations

import gc

import torch
from torch import Tensor

from topkit.indexers import Step
from topkit.indexers.spec import parse

DTYPES = ("int2", "int4", "int8", "fp8_e4m3")


def randn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0)).bfloat16()


def resident() -> int:
    """Bytes of all tensors that Python holds, but for sparse and other odd ones of other tests."""
    gc.collect()
    tensors = [x for x in gc.get_objects() if issubclass(type(x), Tensor)]
    tensors = [x for x in tensors if x.layout == torch.strided and x.device.type == "cpu"]
    storages = {x.untyped_storage().data_ptr(): x.untyped_storage() for x in tensors}
    return sum(storage.nbytes() for storage in storages.values())


def test_indexes_keep_their_codes_and_no_decoded_copy():
    """Of all recipes at once, as looking through all objects takes long."""
    recipes = [parse(spec) for spec in ("sign()", *(f"quantized(dtype='{d}')" for d in DTYPES))]
    step = Step(kv_heads=2, ordered=False)
    keys, new, queries = randn(1, 2, 700, 64), randn(1, 2, 1, 64), randn(1, 8, 1, 64)
    before = resident()
    indexes = [recipe.build(keys, step) for recipe in recipes]
    for index in indexes:
        for _ in range(3):
            index.append(new, step)
            index.select(queries, 9, step)
    sizes = {str(recipe): index.nbytes for recipe, index in zip(recipes, indexes, strict=True)}
    assert resident() - before == sum(sizes.values()), sizes
