"""The Triton kernel that encodes new keys into an index: on a GPU, or in Triton's interpreter."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from device import CUDA, DEVICE, gpu
from topkit.errors import InputError
from topkit.kernels.codes import (
    exponents,
    factors,
    hadamard_rotate,
    levels,
    quantize,
    signs,
    stored,
)
from topkit.kernels.quantize_append import quantize_append

impl = pytest.importorskip("topkit.kernels.quantize_append.triton_impl")


DTYPES = ("sign", "int2", "int4", "int8", "fp8_e4m3")
KINDS = (torch.bfloat16, torch.float16, torch.float32)


def rand(*shape: int, seed=0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator(DEVICE).manual_seed(seed), device=DEVICE)


def room(
    dtype: str, dim: int, scale=torch.float32, batch=2, heads=3, capacity=40
) -> tuple[Tensor, Any]:
    """An index that holds 85 everywhere, in a longer buffer."""
    kind, width = stored(dtype, dim)
    shape = (batch, heads, capacity + 5)
    codes = torch.full((*shape, width), 85, dtype=torch.uint8, device=DEVICE).view(kind)
    scales = torch.full((*shape, 1), 85, dtype=scale, device=DEVICE)
    return codes[:, :, :capacity], None if dtype == "sign" else scales[:, :, :capacity]


def keys_of(dim: int, new: int, kind=torch.bfloat16, batch=2, heads=3, seed=0) -> Tensor:
    """Keys of many magnitudes, outliers among them; strided, as a projection leaves them."""
    x = rand(batch, new, heads, dim, seed=seed) * torch.exp2(2 * rand(batch, new, heads, dim))
    x = x * torch.exp2(4 * rand(batch, new, heads, 1, seed=seed + 1))
    # What float16 would hold as infinity has no code.
    return x.clamp(-6e4, 6e4).to(kind).transpose(1, 2)


def put(keys, index, at, dtype, hadamard, pow2=False) -> tuple[Tensor, Any]:
    """What the index should hold: one key after the other, by the definitions."""
    codes, scale = index[0].clone(), None if index[1] is None else index[1].clone()
    keys = hadamard_rotate(keys) if hadamard else keys
    for b, j in ((b, j) for b in range(len(keys)) for j in range(keys.shape[2])):
        slot = at[b % len(at)] + j
        if not 0 <= slot < codes.shape[2]:
            continue
        if scale is None:
            codes[b, :, slot] = signs(keys[b, :, j])
            continue
        held = scale.dtype == torch.int8
        new, scales = quantize(keys[b, :, j], dtype, "pow2" if pow2 or held else "float")
        codes.view(torch.uint8)[b, :, slot] = new.view(torch.uint8)
        scale[b, :, slot] = exponents(scales) if held else scales
    return codes, scale


def same(found, want) -> bool:
    """Bit by bit, of codes and scales."""
    return all(
        a is None or torch.equal(a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8))
        for a, b in zip(found, want, strict=True)
    )


def check(
    keys: Tensor, at, dtype: str, scale=torch.float32, hadamard=False, pow2=False, backend="triton"
):
    places = at.tolist() if isinstance(at, Tensor) else [at]
    index = room(dtype, keys.shape[3], scale, len(keys), keys.shape[1])
    want = put(keys, index, places, dtype, hadamard, pow2)
    how = {"dtype": dtype, "hadamard": hadamard, "pow2": pow2}
    quantize_append(keys, *index, at, **how, backend=backend)
    assert same(index, want)


@pytest.mark.parametrize("hadamard", [False, True])
@pytest.mark.parametrize(
    ("scale", "pow2"),
    [(torch.float32, False), (torch.float32, True), (torch.int8, False)],
    ids=["float", "powers", "exponents"],
)
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_bits_are_those_of_the_definition(dtype, scale, pow2, hadamard):
    at = torch.tensor([3, 21], device=DEVICE)
    for dim, new, kind in ((64, 19, torch.bfloat16), (128, 1, torch.float16)):
        for backend in ("triton", "torch"):
            check(keys_of(dim, new, kind), at, dtype, scale, hadamard, pow2, backend)


@pytest.mark.parametrize("dtype", ["int8", "fp8_e4m3", "int4"])
def test_what_lies_between_two_codes_is_rounded_as_torch_does(dtype):
    top = {"int8": 127.0, "int4": 8.0}.get(dtype, 448.0)
    grid = torch.linspace(-top, top, 64 * 128, device=DEVICE)
    if dtype == "fp8_e4m3":  # every code, every middle, and what is next to a middle
        codes = levels(torch.arange(127, dtype=torch.uint8).view(torch.float8_e4m3fn), dtype, 127)
        middles = (codes[1:] + codes[:-1]) / 2
        around = [m.nextafter(torch.tensor(t)) for m in (middles,) for t in (0.0, 1e9)]
        grid = torch.cat([codes, middles, *around, codes / 300]).to(DEVICE)
        grid = torch.cat([grid, -grid])
    elif dtype == "int8":
        grid = torch.cat([grid, torch.arange(-253, 254, device=DEVICE) / 2])
    grid = torch.nn.functional.pad(grid, (0, -len(grid) % 63)).view(1, 1, -1, 63)
    keys = torch.nn.functional.pad(grid, (1, 0), value=top)  # so that the scale is one
    index = room(dtype, 64, torch.float32, 1, 1, keys.shape[2])
    want = put(keys, index, [0], dtype, False)
    quantize_append(keys, *index, 0, dtype=dtype, backend="triton")
    assert index[1].eq(1).all() and same(index, want)


@pytest.mark.parametrize("dtype", DTYPES)
def test_zeros_and_the_smallest_floats_have_a_scale(dtype):
    keys = keys_of(64, 4, torch.float32)
    keys[:, :, 0], keys[:, :, 1], keys[:, :, 2] = 0, 1e-43, -(2.0**-126)
    keys[:, :, 3, 1:] = -0.0
    for scale in (torch.float32, torch.int8):
        check(keys, 36, dtype, scale)
    check(keys, 36, dtype, pow2=True)


@pytest.mark.parametrize("scale", [torch.float32, torch.int8], ids=str)
def test_a_power_of_two_keeps_its_scale(scale):
    keys = torch.zeros(1, 1, 30, 64, device=DEVICE)
    keys[..., 5] = 8 * torch.exp2(torch.arange(30, device=DEVICE) - 15.0)
    check(keys, 0, "int4", scale)
    index = room("int4", 64, scale, 1, 1, 30)
    quantize_append(keys, *index, 0, dtype="int4", backend="triton")
    assert torch.equal(factors(index[1])[0, 0, :, 0], keys[0, 0, :, 5] / 8)


def test_a_nan_shows_in_the_scale():
    keys, index = keys_of(64, 3), room("int8", 64)
    keys[1, 2, 1, 7] = float("nan")
    quantize_append(keys, *index, 0, dtype="int8", backend="triton")
    assert index[1].isnan().nonzero().tolist() == [[1, 2, 1, 0]]


@pytest.mark.parametrize("kind", [torch.int64, torch.int32], ids=str)
def test_places_are_a_number_or_one_for_all_rows_or_one_each(kind):
    keys = keys_of(64, 2)
    check(keys, 38, "sign")
    check(keys, torch.tensor([1], dtype=kind, device=DEVICE), "sign")
    check(keys, torch.tensor([0, 38], dtype=kind, device=DEVICE), "sign")
    held = torch.tensor([[7, 0], [9, 0]], dtype=kind, device=DEVICE)
    check(keys, held[:, 0], "int2")


def test_no_key_changes_nothing():
    check(keys_of(64, 0), 40, "int8")


def test_what_the_kernel_does_not_take_runs_in_torch():
    for keys in (keys_of(32, 3), keys_of(64, 3).double()):
        check(keys, 5, "int8", hadamard=True, backend="auto")


REFUSED = {
    "dtype must be one of sign": {"dtype": "int3"},
    "keys must have 4 dimensions": {"keys": rand(2, 3, 64)},
    "keys must be floating-point": {"keys": rand(2, 3, 2, 64).int()},
    "keys must be bfloat16, float16 or float32": {"keys": rand(2, 3, 2, 64).double()},
    "keys must be contiguous in the last": {"keys": rand(2, 3, 64, 2).mT},
    "keys must not require gradients": {"keys": rand(2, 3, 2, 64).requires_grad_()},
    r"codes must be \(2, 2, 40, 64\)": {"keys": rand(2, 2, 2, 64)},
    r"codes must be \(2, 3, 40, 32\)": {"keys": rand(2, 3, 2, 32)},
    "codes must be float8_e4m3fn; got torch.int8": {"dtype": "fp8_e4m3"},
    "codes must not be expanded": {"codes": room("int8", 64)[0][:, :, :1].expand(-1, -1, 40, -1)},
    "codes must be on .* got meta": {"codes": room("int8", 64)[0].to("meta")},
    "scale must be given for int8": {"scale": None},
    r"scale must be \(2, 3, 40, 1\)": {"scale": room("int8", 64)[1][:, :, 1:]},
    "scale must be float32 or int8": {"scale": room("int8", 64)[1].half()},
    "at must be 0 to 38 for 2 new keys of 40; got 39": {"at": 39},
    "at must be 0 to 38 .* got -1": {"at": -1},
    "at must be a whole number; got 1.5": {"at": 1.5},
    r"at must be \(1,\) or \(2,\); got \(3,\)": {"at": torch.zeros(3, device=DEVICE).long()},
    "at must be int64 or int32": {"at": torch.zeros(1, device=DEVICE)},
    "at must be on": {"at": torch.zeros(1, device="meta").long()},
    "backend must be one of": {"backend": "cuda"},
}


@pytest.mark.parametrize("message", REFUSED)
def test_bad_input_is_refused_by_name(message, monkeypatch):
    monkeypatch.setattr(impl, "quantize_append", lambda *args, **options: pytest.fail("launched"))
    codes, scale = room("int8", 64)
    told = {"keys": rand(2, 3, 2, 64), "codes": codes, "scale": scale, "at": 0, "dtype": "int8"}
    with pytest.raises(InputError, match=message):
        quantize_append(**told | {"backend": "triton"} | REFUSED[message])


@pytest.mark.skipif(CUDA, reason="a tensor on a GPU is not looked at")
def test_places_without_room_are_refused_where_they_can_be_seen():
    codes, scale = room("int8", 64)
    told = {"keys": rand(2, 3, 2, 64), "codes": codes, "scale": scale, "dtype": "int8"}
    with pytest.raises(InputError, match=r"at must be 0 to 38 .* got 39"):
        quantize_append(**told, at=torch.tensor([0, 39]), backend="triton")


@gpu
@pytest.mark.gpu
@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("dim", [64, 128])
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_form(dtype, dim, kind):
    for scale in (torch.float32, torch.int8):
        for hadamard in (False, True):
            for new in (1, 16, 37):
                keys = keys_of(dim, new, kind, 3, 5, seed=new)
                at = torch.tensor([0, 3, 2], device=DEVICE)
                check(keys, at, dtype, scale, hadamard)


@gpu
@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_gpu_gives_the_codes_that_a_cpu_does(dtype):
    keys, index = keys_of(128, 37), room(dtype, 128)
    want = put(keys.cpu(), [None if x is None else x.cpu() for x in index], [2], dtype, True)
    for backend in ("torch", "triton"):
        quantize_append(keys, *index, 2, dtype=dtype, hadamard=True, backend=backend)
        assert same([None if x is None else x.cpu() for x in index], want)


@gpu
@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_slots_without_room_are_left_out(backend):
    check(keys_of(64, 5), torch.tensor([-2, 38], device=DEVICE), "int8", backend=backend)


@gpu
@pytest.mark.gpu
def test_addresses_beyond_32_bits():
    length = 2**25
    codes = torch.zeros(1, 1, length, 128, dtype=torch.int8, device=DEVICE)
    scale = torch.zeros(1, 1, length, 1, device=DEVICE)
    assert codes.numel() > 2**31
    keys = keys_of(128, 5, batch=1, heads=1)
    quantize_append(keys, codes, scale, length - 5, dtype="int8", backend="triton")
    want, scales = quantize(keys, "int8")
    assert torch.equal(codes[:, :, -5:], want) and torch.equal(scale[:, :, -5:], scales)
    assert codes[:, :, :-5].count_nonzero() == 0
    rows = codes.view(32, 1, -1, 128), scale.view(32, 1, -1, 1)  # as a last row
    keys = keys_of(128, 1, batch=32, heads=1)
    quantize_append(keys, *rows, 2**20 - 1, dtype="int8", backend="triton")
    assert torch.equal(rows[0][:, :, -1:], quantize(keys, "int8")[0])


@gpu
@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_captured_graph_replays_at_new_places(dtype):
    index, keys = room(dtype, 128, torch.int8), keys_of(128, 1)
    at = torch.zeros(1, dtype=torch.int64, device=DEVICE)
    told = {"dtype": dtype, "hadamard": dtype != "sign", "backend": "triton"}
    quantize_append(keys, *index, at, **told)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        quantize_append(keys, *index, at, **told)
        at += 1
    at.zero_()
    want = index
    for step in range(5):
        keys.copy_(keys_of(128, 1, seed=step))
        want = put(keys, want, [step], dtype, told["hadamard"])
        graph.replay()
    assert same(index, want)
