"""What a CPU computes block by block, against slow renderings, with blocks of any size."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from topkit.kernels import blocks as module
from topkit.kernels.blocks import blocks
from topkit.kernels.codes import exponents, factors, hadamard_rotate, quantize, signs
from topkit.kernels.quantize_append import quantize_append
from topkit.kernels.score import score, score_codes

DTYPES = ("sign", "int2", "int4", "int8", "fp8_e4m3")
BITS = {"sign": 1, "int2": 2, "int4": 4}
CPU = torch.device("cpu")
# Sums of up to 256 products in float32, in another order, relative to the sum of their magnitudes.
ROUNDING = 1e-6


@pytest.fixture(params=[1, 96, 1 << 19], ids="block {}".format)
def block(request, monkeypatch):
    """Blocks of one thing each, of some, and of all."""
    monkeypatch.setattr(module, "BLOCK", request.param)
    return request.param


@given(st.integers(0, 100), st.integers(0, 50), st.integers(1, 200))
def test_blocks_are_all_slices_in_order_and_none_too_large(count, each, most):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "BLOCK", most)
        slices = list(blocks(count, each, CPU))
    assert [i for part in slices for i in range(count)[part]] == list(range(count))
    room = most * torch.get_num_threads()
    assert all((part.stop - part.start) * each <= max(room, each) for part in slices)
    assert len(list(blocks(count, each, torch.device("cuda")))) == min(count, 1)


def decoded(codes: Tensor, dtype: str, dim: int) -> list[float]:
    """One key's levels, field by field in Python."""
    if dtype not in BITS:
        return codes.double().tolist()
    stored, bits = codes.tolist(), BITS[dtype]
    fields = [
        stored[d % len(stored)] >> (bits * (d // len(stored))) & (1 << bits) - 1 for d in range(dim)
    ]
    centre = {"sign": 0.5, "int2": 1.5, "int4": 7.5}[dtype]
    return [(field - centre) * (2 if dtype == "sign" else 1) for field in fields]


def slow(queries, codes, dtype, scale=None, start=None, stop=None) -> tuple[Tensor, Tensor]:
    """Scores in float64, a query and a key at a time, and the sums of their products' magnitudes."""
    rows, heads, count, dim = queries.shape
    groups, length = codes.shape[1:3]
    out = torch.full((2, rows, heads, count, length), -math.inf, dtype=torch.float64)
    places = itertools.product(range(rows), range(groups), range(length))
    for b, group, slot in places:
        key = torch.tensor(decoded(codes[b % len(codes), group, slot], dtype, dim)).double()
        if scale is not None:
            key *= float(factors(scale[b % len(scale), group, slot]))
        for h, t in itertools.product(range(heads), range(count)):
            first = 0 if start is None else int(start[b])
            end = length if stop is None else int(stop[b % len(stop), t])
            if h * groups // heads == group and first <= slot < end:
                products = queries[b, h, t].double() * key
                out[:, b, h, t, slot] = torch.stack([products.sum(), products.abs().sum()])
    return out[0], out[1]


def same(scores: Tensor, slowly: tuple[Tensor, Tensor]) -> bool:
    want, magnitude = slowly
    hidden = want == -math.inf
    error = (scores.double() - want).masked_fill(hidden, 0.0).abs()
    close = error <= ROUNDING * magnitude.masked_fill(hidden, 0.0)
    return bool(close.all()) and torch.equal(scores == -math.inf, hidden)


def encoded(keys: Tensor, dtype: str, pow2: bool = False) -> tuple[Tensor, Tensor | None]:
    if dtype == "sign":
        return signs(keys), None
    codes, scale = quantize(keys, dtype, "pow2" if pow2 else "float")
    return codes, exponents(scale) if pow2 else scale


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("dim", [1, 7, 64, 80, 96, 128, 256])
@pytest.mark.parametrize("dtype", DTYPES)
def test_scores_of_codes_are_products_with_their_levels_in_any_width(dtype, dim, block):
    queries, keys = randn(2, 4, 2, dim), randn(2, 2, 5, dim, seed=1)
    codes, scale = encoded(keys, dtype)
    scores = score_codes(queries, codes, dtype=dtype, scale=scale)
    assert same(scores, slow(queries, codes, dtype, scale))


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from(DTYPES),
    st.sampled_from([torch.float32, torch.bfloat16, torch.float16, torch.float64]),
    st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3), st.integers(1, 3)),
    st.integers(0, 9),
    st.sampled_from([3, 8, 20]),
    st.tuples(st.booleans(), st.booleans(), st.booleans(), st.booleans()),
    st.integers(1, 400),
    st.integers(0, 1000),
)
def test_scores_do_not_depend_on_where_blocks_end(
    dtype, kind, sizes, length, dim, flags, most, seed
):
    (rows, groups, share, count), (one_row, pow2, padded, windowed) = sizes, flags
    queries = randn(rows, groups * share, count, dim, seed=seed).to(kind)
    keys = randn(1 if one_row else rows, groups, length, dim, seed=seed + 1)
    codes, scale = encoded(keys, dtype, pow2)
    draw = torch.Generator().manual_seed(seed)
    start = torch.randint(0, length + 1, (rows,), generator=draw) if padded else None
    stop = torch.randint(0, length + 3, (rows, count), generator=draw) if windowed else None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "BLOCK", most)
        scores = score_codes(queries, codes, dtype=dtype, scale=scale, start=start, stop=stop)
    assert scores.dtype == torch.float32 and scores.is_contiguous()
    assert same(scores, slow(queries.float(), codes, dtype, scale, start, stop))


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("one_row", [False, True])
@pytest.mark.parametrize("length", [0, 1, 33])
def test_scores_of_keys_in_any_dtype(kind, one_row, length, block):
    queries, keys = randn(3, 6, 2, 20).to(kind), randn(3, 2, length, 20, seed=1).to(kind)
    keys = keys[:1] if one_row else keys
    scores = score(queries, keys)
    assert scores.dtype == torch.float32 and scores.shape == (3, 6, 2, length)
    assert same(scores, slow(queries.float(), keys.float(), "float32"))


LAYOUTS = {
    "cut": lambda x: torch.cat([x, x], 2)[:, :, : x.shape[2]],
    "begun later": lambda x: torch.cat([x, x], 2)[:, :, x.shape[2] :],
    "every second": lambda x: x.repeat_interleave(2, 2)[:, :, ::2],
    "turned": lambda x: x.transpose(1, 2).contiguous().transpose(1, 2),
    "narrowed": lambda x: torch.cat([x, x], 3)[..., : x.shape[3]],
    "strided": lambda x: x.mT.contiguous().mT,
    "at an odd byte": lambda x: torch.cat([x.flatten()[:3], x.flatten()])[3:].view(x.shape),
    "one row for all": lambda x: x[:1].expand(2, -1, -1, -1),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_codes_are_read_however_they_lie_in_memory(layout, dtype, block):
    queries = randn(2, 4, 1, 64)
    codes, scale = encoded(randn(2, 2, 11, 64, seed=1), dtype)
    lain = LAYOUTS[layout](codes.view(torch.uint8)).view(codes.dtype)
    scale = None if scale is None else LAYOUTS[layout](scale)
    assert torch.equal(lain.view(torch.uint8), codes.view(torch.uint8)) or layout.startswith("one")
    scores = score_codes(queries, lain, dtype=dtype, scale=scale)
    assert same(scores, slow(queries, lain, dtype, scale))


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_nan_shows_in_its_own_scores_and_in_no_others(dtype, block):
    queries = randn(1, 4, 2, 16)
    codes, scale = encoded(randn(1, 2, 9, 16, seed=1), dtype)
    queries[0, 1, 1, 7] = math.nan
    broken = torch.zeros(1, 4, 2, 9, dtype=torch.bool)
    broken[0, 1, 1] = True
    if scale is not None:
        scale[0, 1, 5] = math.nan
        broken[0, 2:, :, 5] = True
    if dtype == "fp8_e4m3":
        codes.view(torch.uint8)[0, 0, 3, 2] = 0xFF
        broken[0, :2, :, 3] = True
    assert torch.equal(score_codes(queries, codes, dtype=dtype, scale=scale).isnan(), broken)


@pytest.mark.parametrize("dtype", ["int2", "int4"])
def test_an_infinite_query_scores_by_the_sign_of_the_level(dtype, block):
    queries, (codes, scale) = randn(1, 1, 1, 13), encoded(randn(1, 1, 9, 13, seed=1), dtype)
    queries[..., 4] = math.inf
    scores = score_codes(queries, codes, dtype=dtype, scale=scale)[0, 0, 0]
    assert scores.tolist() == [
        math.copysign(math.inf, decoded(x, dtype, 13)[4]) for x in codes[0, 0]
    ]


@pytest.mark.parametrize("pool", [None, "mean", "sum", "max"], ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_gradients_are_those_of_the_whole_product(dtype, pool, block):
    codes, scale = encoded(randn(1, 2, 7, 12, seed=1), dtype)
    levels = torch.tensor([[[decoded(x, dtype, 12) for x in head] for head in codes[0]]])
    queries, start, stop = randn(2, 4, 3, 12), torch.tensor([0, 2]), torch.tensor([[4, 5, 9]])
    weights, gradients = randn(2, 4 if pool is None else 2, 3, 7, seed=2), []
    for blockwise in (True, False):
        leaf_queries, factor = queries.clone().requires_grad_(), scale
        if factor is not None:
            factor = factor.clone().requires_grad_()
        if blockwise:
            how = {"dtype": dtype, "pool": pool, "start": start, "stop": stop}
            scores = score_codes(leaf_queries, codes, scale=factor, **how)
        else:
            keys = levels if factor is None else levels * factor
            scores = (leaf_queries.unflatten(1, (2, 2)) @ keys[:, :, None].mT).flatten(1, 2)
            if pool is not None:
                grouped = scores.unflatten(1, (2, 2))
                scores = grouped.amax(2) if pool == "max" else getattr(grouped, pool)(2)
        slots = torch.arange(7)
        seen = (slots >= start[:, None, None, None]) & (slots < stop[:, None, :, None])
        scores.masked_fill(~seen, 0.0).mul(weights).sum().backward()
        leaves = [leaf_queries] if factor is None else [leaf_queries, factor]
        gradients.append([leaf.grad for leaf in leaves])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("hadamard", [False, True])
@pytest.mark.parametrize("pow2", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_keys_are_encoded_alike_in_any_block(dtype, pow2, hadamard, block):
    for kind in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
        keys = (randn(2, 3, 13, 8) * randn(2, 3, 13, 1, seed=1).exp()).to(kind)
        keys[0, 0, 2] = 0.0
        one_by_one = [
            encoded(hadamard_rotate(key) if hadamard else key, dtype, pow2)
            for key in keys.unbind(2)
        ]
        codes = torch.stack([code for code, _ in one_by_one], 2)
        scale = None if dtype == "sign" else torch.stack([x for _, x in one_by_one], 2)  # type: ignore[misc]
        for at in (4, torch.tensor([4, 1])):
            room = torch.zeros(2, 3, 20, codes.shape[3], dtype=torch.uint8).view(codes.dtype)
            scales = None if scale is None else scale.new_zeros(2, 3, 20, 1)
            how = {"dtype": dtype, "hadamard": hadamard, "pow2": pow2}
            quantize_append(keys, room, scales, at, **how)
            for row, first in enumerate([4, 4] if isinstance(at, int) else [4, 1]):
                for buffer, want in ((room, codes), (scales, scale)):
                    if buffer is None or want is None:
                        continue
                    raw = buffer[row].view(torch.uint8).clone()
                    assert torch.equal(raw[:, first : first + 13], want[row].view(torch.uint8))
                    raw[:, first : first + 13] = 0
                    assert not raw.any()
