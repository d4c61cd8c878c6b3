"""fp8 index keys as DeepSeek's inference code stores them, a vector at a time; scales of both kinds."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import topkit
from device import DEVICE
from topkit.errors import InputError
from topkit.indexers import index_keys
from topkit.kernels.codes import quantize, stored
from topkit.kernels.quantize_append import quantize_append


def by_hand(vector: list[float], scale: str, amax: float) -> tuple[list[float], float]:
    """e4m3 values of a vector, and its scale: the largest magnitude, at least amax, over 448."""
    largest = max([amax, *map(abs, vector)])
    step = float(torch.tensor(largest) / torch.tensor(448.0))
    if scale == "pow2":
        step = 2.0 ** math.ceil(math.log2(step))
    values = [min(max(x / step, -448.0), 448.0) for x in vector]
    return torch.tensor(values).to(torch.float8_e4m3fn).float().tolist(), step


def rotated(vector: Tensor) -> Tensor:
    """By the matrix of Walsh and Hadamard, whose entry is -1 where i and j share an odd number of bits."""
    n = len(vector)
    signs = [[(-1.0) ** bin(i & j).count("1") for j in range(n)] for i in range(n)]
    return (torch.tensor(signs, dtype=torch.float64) @ vector.double() / n**0.5).float()


@pytest.mark.parametrize("scale", ["float", "pow2"])
def test_index_keys_are_those_of_deepseeks_code(scale: str) -> None:
    g = torch.Generator().manual_seed(0)
    sizes = torch.tensor([1.0, 300.0, 1e-4, 3e-6, 1e-9, 0.0, 2.0**-30])
    keys = torch.randn(1, 1, 7, 32, generator=g) * sizes[:, None]
    codes = index_keys.encoded(keys, "fp8", "torch", scale)
    for slot in range(7):
        values, step = by_hand(rotated(keys[0, 0, slot]).tolist(), scale, 1e-4)
        assert float(codes["scale"][0, 0, slot]) == pytest.approx(step, rel=1e-6)
        got, wanted = codes["vectors"][0, 0, slot].float(), torch.tensor(values)
        # A value beside the middle of two may fall to either by the order of the rotation's sums.
        assert ((got - wanted).abs() <= wanted.abs() / 8 + 2**-9).all()
        assert (got != wanted).float().mean() < 0.1
    assert float(codes["scale"][0, 0, 4]) == float(codes["scale"][0, 0, 5])


def test_a_key_below_the_floor_has_the_floors_scale_and_others_their_own() -> None:
    keys = torch.tensor([[1e-3, -2e-5], [5e-5, -2e-5], [0.0, 0.0]])
    free, floored = quantize(keys, "fp8_e4m3"), quantize(keys, "fp8_e4m3", amax=1e-4)
    assert free[1][0] == floored[1][0] and free[0][0].equal(floored[0][0])
    assert float(floored[1][1]) == float(floored[1][2]) == pytest.approx(1e-4 / 448, rel=1e-6)
    assert float(floored[0][1][0].float()) == 224 and float(free[0][1][0].float()) == 448


@pytest.mark.parametrize("dtype", ["fp8_e4m3", "int8", "int4"])
@pytest.mark.parametrize("pow2", [False, True])
def test_the_kernel_writes_the_bits_of_the_floor(dtype: str, pow2: bool) -> None:
    g = torch.Generator().manual_seed(3)
    sizes = 10.0 ** torch.linspace(-7, 1, 9)
    keys = torch.randn(1, 1, 9, 64, generator=g) * sizes[:, None]
    keys[0, 0, 4, 7] = math.nan if dtype == "fp8_e4m3" else 0.0
    kind, width = stored(dtype, 64)
    keys, made = keys.to(DEVICE), []
    for backend in ("torch", "triton"):
        codes, scale = (
            torch.zeros(1, 1, 9, width, dtype=kind, device=DEVICE),
            torch.zeros(1, 1, 9, 1, device=DEVICE),
        )
        how: dict[str, Any] = dict(dtype=dtype, hadamard=True, pow2=pow2, amax=1e-3)
        quantize_append(keys, codes, scale, 0, **how, backend=backend)
        made.append((codes.view(torch.uint8), scale.view(torch.int32)))
    real = torch.arange(9, device=DEVICE) != 4
    assert made[0][0][0, 0, real].equal(made[1][0][0, 0, real])
    assert made[0][1][0, 0, real].equal(made[1][1][0, 0, real])
    assert made[0][1].view(torch.float32).isnan().equal(made[1][1].view(torch.float32).isnan())


def test_what_scales_are_of() -> None:
    assert repr(topkit.indexer("lightning:weights=given,dtype=fp8,scale=float")) == (
        "lightning(weights='given', dtype='fp8', scale='float')"
    )
    with pytest.raises(InputError, match="scale is of fp8 keys"):
        topkit.indexer("lightning:weights=given,dtype=mxfp4,scale=float")
    with pytest.raises(InputError, match="scale must be"):
        topkit.indexer("lightning:weights=given,dtype=fp8,scale=half")
    for bad in ("dtype=mxfp4,amax=1e-4", "amax=-1", "amax=nan"):
        with pytest.raises(InputError, match="amax must be 0 or a magnitude"):
            topkit.indexer(f"quantized:{bad}")
