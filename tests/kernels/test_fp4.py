"""mxfp4 and nvfp4, bit for bit, against a slow rendering of the formats."""

from __future__ import annotations

import math
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from topkit.errors import InputError
from topkit.kernels import fp4
from topkit.kernels.codes import DTYPES, scales_stored, stored
from topkit.kernels.quantize_append import quantize_append
from topkit.kernels.score import score_codes
from topkit.kernels.score_select import score_select

E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


def e4m3(bits: int) -> float:
    """The value of a float8_e4m3fn without a sign."""
    exponent, mantissa = bits >> 3, bits & 7
    return mantissa * 2.0**-9 if exponent == 0 else (8 + mantissa) * 2.0 ** (exponent - 10)


def nearest(x: float, values: list[float]) -> int:
    """The place of the nearest value, of two the even place."""
    return min(range(len(values)), key=lambda n: (abs(values[n] - x), n % 2))


def slow_block(block: list[float], dtype: str) -> tuple[list[int], int]:
    """The codes of a block and the byte of its scale."""
    largest = torch.tensor(max(map(abs, block)))
    share = float(largest / torch.tensor(6.0))  # rounded once, to float32
    if dtype == "mxfp4":
        exponent = next(n for n in range(-126, 128) if 2.0**n >= share or n == 127)
        byte, scale = exponent + 127, 2.0**exponent
    else:
        byte = max(1, nearest(min(share, 448.0), [e4m3(n) for n in range(127)]))
        scale = e4m3(byte)
    scaled = [float(torch.tensor(x) / torch.tensor(scale)) for x in block]
    return [nearest(abs(x), list(E2M1)) + 8 * (math.copysign(1, x) < 0) for x in scaled], byte


def slow_codes(vector: list[float], dtype: str) -> tuple[list[int], list[int], list[float]]:
    """The bytes of a vector, those of its scales, and what both stand for."""
    size, codes, scales, values = fp4.BLOCK[dtype], [], [], []
    for first in range(0, len(vector), size):
        own, byte = slow_block(vector[first : first + size], dtype)
        factor = 2.0 ** (byte - 127) if dtype == "mxfp4" else e4m3(byte)
        codes += own
        scales.append(byte)
        values += [(-1) ** (code >> 3) * E2M1[code & 7] * factor for code in own]
    codes += [0] * (len(codes) % 2)
    return [a + 16 * b for a, b in zip(codes[::2], codes[1::2], strict=True)], scales, values


def as_bytes(x: torch.Tensor) -> list:
    return x.view(torch.uint8).tolist()


def drawn(rows: int, width: int, seed: int, spread: float) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    sizes = torch.exp(torch.randn(rows, width, generator=g) * spread)
    return torch.randn(rows, width, generator=g) * sizes


@settings(deadline=None, max_examples=40)
@given(
    st.sampled_from(list(fp4.BLOCK)), st.integers(1, 70), st.integers(0, 99), st.floats(0.0, 5.0)
)
def test_bytes_and_values_are_the_formats(dtype, width, seed, spread):
    vectors = drawn(3, width, seed, spread)
    codes, scales = fp4.quantize(vectors, dtype)
    back = fp4.dequantize(codes, scales, dtype, width)
    assert codes.shape[-1] == stored(dtype, width)[1] == -(-width // 2)
    assert scales.shape[-1] == scales_stored(dtype, width)[1]
    for row, vector in enumerate(vectors.tolist()):
        bytes_, scale_bytes, values = slow_codes(vector, dtype)
        assert codes[row].tolist() == bytes_
        assert as_bytes(scales)[row] == scale_bytes
        assert back[row].tolist() == values


@pytest.mark.parametrize("dtype", fp4.BLOCK)
def test_halves_go_to_the_even_code_and_zeros_have_a_scale(dtype):
    middles = [0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0]
    block = [6.0, -0.0, *middles, *(-x for x in middles)]
    for scale in (1.0, 2.0**-5, 2.0**7):
        vector = [x * scale for x in block]
        codes, scales = fp4.quantize(torch.tensor(vector), dtype)
        assert (codes.tolist(), as_bytes(scales)) == slow_codes(vector, dtype)[:2]
        back = fp4.dequantize(codes, scales, dtype, 16)[2:9] / scale
        assert back.tolist() == [0, 1, 1, 2, 2, 4, 4]
    codes, scales = fp4.quantize(torch.zeros(2, 40), dtype)
    assert not codes.any() and (fp4.factors(scales) > 0).all()


def test_every_byte_is_decoded():
    codes = torch.arange(256, dtype=torch.uint8)[:, None]
    ones = torch.full((256, 1), 127, dtype=torch.uint8)
    values = fp4.dequantize(codes, ones, "mxfp4", 2)
    signed = [*E2M1, *(-x for x in E2M1)]
    assert values.tolist() == [[signed[n & 15], signed[n >> 4]] for n in range(256)]
    assert fp4.factors(torch.tensor([1, 127, 254, 255], dtype=torch.uint8)).tolist()[:3] == [
        2.0**-126,
        1.0,
        2.0**127,
    ]


@pytest.mark.parametrize("dtype", fp4.BLOCK)
def test_what_is_not_a_number_shows_in_the_scores(dtype):
    keys = torch.randn(1, 1, 3, 48)
    keys[0, 0, 1, 20] = math.nan
    codes, scale = fp4.quantize(keys, dtype)
    scores = score_codes(torch.ones(1, 1, 1, 48), codes, dtype=dtype, scale=scale)
    assert scores.isnan().flatten().tolist() == [False, True, False]
    with pytest.raises(InputError, match="NaN"):
        score_select(torch.ones(1, 1, 1, 48), codes, 2, dtype=dtype, scale=scale)


SHAPES = [((2, 4, 3), (2, 2), 12, 64), ((3, 6, 1), (1, 3), 40, 80), ((1, 2, 2), (1, 1), 9, 17)]


@pytest.mark.parametrize(("dtype", "shape"), product(fp4.BLOCK, SHAPES))
def test_scores_are_those_of_what_the_bytes_stand_for(dtype, shape, monkeypatch):
    """Of shared rows and of many blocks of keys; pooled, and within a window."""
    monkeypatch.setattr("topkit.kernels.blocks.BLOCK", 800)
    (rows, heads, count), (key_rows, groups), length, width = shape
    g = torch.Generator().manual_seed(1)
    queries = torch.randn(rows, heads, count, width, generator=g)
    keys = torch.randn(key_rows, groups, length, width, generator=g)
    codes, scale = fp4.quantize(keys, dtype)
    start = torch.arange(rows) % 3
    scores = score_codes(queries, codes, dtype=dtype, scale=scale, pool="mean", start=start)
    values = [
        [[slow_codes(key, dtype)[2] for key in head] for head in row] for row in keys.tolist()
    ]
    told = torch.tensor(values, dtype=torch.float64).repeat_interleave(heads // groups, 1)
    wanted = queries.double() @ told.mT
    wanted = wanted.unflatten(1, (groups, -1)).mean(2)
    wanted[torch.arange(length).expand_as(wanted) < start[:, None, None, None]] = -math.inf
    torch.testing.assert_close(scores.double(), wanted, atol=1e-4, rtol=1e-5)
    again = score_select(
        queries, codes, 5, dtype=dtype, scale=scale, pool="mean", start=start, order=None
    )
    assert again.sort().values.equal(scores.topk(5).indices.sort().values)


@pytest.mark.parametrize("dtype", fp4.BLOCK)
def test_codes_are_read_where_they_lie(dtype):
    """Behind a byte, and between others: words are then copied, not read across."""
    keys, queries = torch.randn(1, 2, 11, 36), torch.randn(1, 2, 1, 36)
    codes, scale = fp4.quantize(keys, dtype)
    room = torch.zeros(1, 2, 11, codes.shape[-1] + 3, dtype=torch.uint8)[..., 1:-2]
    room.copy_(codes)
    a, b = (score_codes(queries, x, dtype=dtype, scale=scale) for x in (codes, room))
    assert torch.equal(a, b)


@pytest.mark.parametrize("dtype", fp4.BLOCK)
@pytest.mark.parametrize("hadamard", [False, True])
def test_appended_keys_are_encoded_in_place(dtype, hadamard):
    keys = torch.randn(2, 3, 5, 64)
    codes = torch.zeros(2, 3, 9, 32, dtype=torch.uint8)
    (kind, *_), width = scales_stored(dtype, 64)
    scale = torch.zeros(2, 3, 9, width).to(kind)
    quantize_append(keys, codes, scale, 3, dtype=dtype, hadamard=hadamard)
    from topkit.kernels.codes import hadamard_rotate

    new, scales = fp4.quantize(hadamard_rotate(keys) if hadamard else keys, dtype)
    assert torch.equal(codes[:, :, 3:8], new) and not codes[:, :, :3].any()
    assert as_bytes(scale[:, :, 3:8].contiguous()) == as_bytes(scales)
    quantize_append(keys, codes, scale, torch.tensor([4, 0]), dtype=dtype, hadamard=hadamard)
    assert torch.equal(codes[0, :, 4:], new[0]) and torch.equal(codes[1, :, :5], new[1])


def test_what_does_not_belong_together_is_refused():
    codes, scale = fp4.quantize(torch.randn(1, 1, 4, 64), "mxfp4")
    queries = torch.randn(1, 1, 1, 64)
    with pytest.raises(InputError, match=r"scale must be \(1, 1, 4, 2\); got \(1, 1, 4, 1\)"):
        score_codes(queries, codes, dtype="mxfp4", scale=scale[..., :1])
    with pytest.raises(InputError, match=r"scale must be float8_e4m3fn; got torch\.uint8"):
        score_codes(queries, codes, dtype="nvfp4", scale=scale)
    with pytest.raises(InputError, match="queries must have 64 or 128 dimensions; got 32"):
        score_codes(
            queries[..., :32],
            codes[..., :16],
            dtype="mxfp4",
            scale=scale[..., :1],
            backend="triton",
        )
    assert {"mxfp4", "nvfp4"} < set(DTYPES)
