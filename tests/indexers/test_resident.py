"""What an index keeps in memory is what it says."""

from __future__ import annotations

import gc

import pytest
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


@pytest.mark.parametrize("spec", ["sign()", *(f"quantized(dtype='{d}')" for d in DTYPES)])
def test_an_index_keeps_its_codes_and_no_decoded_copy(spec):
    recipe, step = parse(spec), Step(kv_heads=2, ordered=False)
    keys, new, queries = randn(1, 2, 700, 64), randn(1, 2, 1, 64), randn(1, 8, 1, 64)
    before = resident()
    index = recipe.build(keys, step)
    for _ in range(3):
        index.append(new, step)
        index.select(queries, 9, step)
    assert resident() - before == index.nbytes
