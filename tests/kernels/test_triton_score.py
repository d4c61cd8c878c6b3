"""The Triton kernels that score codes: on a GPU, or in Triton's interpreter."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from device import CUDA, DEVICE, gpu
from topkit.errors import InputError
from topkit.kernels.codes import exponents, factors, levels, quantize, signs, unpack
from topkit.kernels.score import reference, score_codes, score_lightning

impl = pytest.importorskip("topkit.kernels.score.triton_impl")
layout = pytest.importorskip("topkit.kernels.score.layout")

pytestmark = pytest.mark.usefixtures("poisoned")


# Relative L2 errors. Against integers a query has 15 bits: half a unit of largest / 32639, about 3e-5
# of a normal query, and of a turned one (signs) at most 16 times that. Against fp8 it has 22 (bf16 is
# exact), and sums are float32.
INTEGERS = 1e-4
ALIKE = 5e-4
FLOATS = 1e-5
# Tensor cores keep about 14 bits of a sum of products of fp8, as DeepSeek's own kernel does.
LIGHTNING = 1e-5 if not CUDA else 2e-3

DTYPES = ("sign", "int2", "int4", "int8", "fp8_e4m3")
POOLS = (None, "mean", "sum", "max")


def bound(dtype: str) -> float:
    return FLOATS if dtype == "fp8_e4m3" else INTEGERS


def slow(queries, codes, *, dtype, scale, pool, start, stop):
    """One query of one head after the other, in float64."""
    batch, heads, count, dim = queries.shape
    length, group = codes.shape[2], heads // codes.shape[1]
    out = torch.zeros(batch, heads, count, length, dtype=torch.float64, device=queries.device)
    for b, h, t in itertools.product(range(batch), range(heads), range(count)):
        held = codes[b % len(codes), h // group]
        keys = 2.0 * unpack(held, 1, dim) - 1 if dtype == "sign" else levels(held, dtype, dim)
        out[b, h, t] = keys.double() @ queries[b, h, t].double()
        if scale is not None:
            out[b, h, t] *= factors(scale[b % len(scale), h // group, :, 0]).double()
    if pool is not None:
        out = out.view(batch, -1, group, count, length)
        out = {"mean": out.mean(2), "sum": out.sum(2), "max": out.amax(2)}[pool]
    return hidden(out, start, stop)


def hidden(out: Tensor, start: Tensor | None, stop: Tensor | None) -> Tensor:
    for b, t in itertools.product(range(out.shape[0]), range(out.shape[2])):
        if start is not None:
            out[b, :, t, : start[b]] = -math.inf
        if stop is not None:
            out[b, :, t, stop[b % len(stop), t] :] = -math.inf
    return out


def error(found: Tensor, want: Tensor) -> float:
    """The relative error of what is finite; no other infinities and NaN may be there."""
    found, real = found.double(), want.isfinite()
    assert torch.equal(found[~real], want[~real])
    return ((found[real] - want[real]).norm() / want[real].norm()).item()


def roomy(tensor: Tensor) -> Tensor:
    """The same on a longer buffer, whose other slots are NaN, or all ones in bits."""
    held = tensor.new_zeros(*tensor.shape[:2], tensor.shape[2] + 9, tensor.shape[3])
    held.view(torch.uint8).fill_(255)
    held[:, :, : tensor.shape[2]] = tensor
    return held[:, :, : tensor.shape[2]]


def case(
    dtype="int8",
    pool=None,
    group=4,
    dim=64,
    batch=2,
    groups=2,
    count=1,
    length=333,
    kind=torch.bfloat16,
    pow2=False,
    one_row=False,
    window=True,
    seed=0,
) -> dict:
    g = torch.Generator(DEVICE).manual_seed(seed)

    def randn(*shape):
        return torch.randn(*shape, generator=g, device=DEVICE)

    queries = randn(batch, count, groups * group, dim).to(kind).transpose(1, 2)
    keys = randn(1 if one_row else batch, groups, length, dim)
    scale = None
    if dtype == "sign":
        codes = signs(keys)
    else:
        codes, scale = quantize(keys, dtype, "pow2" if pow2 else "float")
        scale = roomy(exponents(scale) if pow2 else scale)
    start = torch.randint(0, length // 3 + 1, (batch,), generator=g, device=DEVICE)
    stop = torch.randint(length // 2, length + 2, (batch, count), generator=g, device=DEVICE)
    return {
        "queries": queries,
        "codes": roomy(codes.view(torch.uint8)).view(codes.dtype),
        "dtype": dtype,
        "scale": scale,
        "pool": pool,
        "start": start if window else None,
        "stop": stop if window else None,
    }


def lightning(
    heads=8, dim=64, batch=2, count=2, length=333, pow2=False, one_row=False, seed=0
) -> dict:
    g = torch.Generator(DEVICE).manual_seed(seed)

    def randn(*shape):
        return torch.randn(*shape, generator=g, device=DEVICE)

    queries, query_scale = quantize(randn(batch, heads, count, dim), "fp8_e4m3", "pow2")
    keys, key_scale = quantize(randn(1 if one_row else batch, 1, length, dim), "fp8_e4m3", "pow2")
    return {
        "queries": queries,
        "keys": roomy(keys.view(torch.uint8)).view(keys.dtype),
        "gates": randn(batch, count, heads),
        "query_scale": query_scale,
        "key_scale": roomy(exponents(key_scale) if pow2 else key_scale),
        "start": torch.tensor([0, 17], device=DEVICE)[:batch],
        "stop": torch.tensor([[length], [length - 40]], device=DEVICE)[:batch].expand(-1, count),
    }


def slow_lightning(queries, keys, gates, *, query_scale, key_scale, start, stop):
    batch, heads, count, dim = queries.shape
    out = torch.zeros(batch, 1, count, keys.shape[2], dtype=torch.float64, device=queries.device)
    for b, j, t in itertools.product(range(batch), range(heads), range(count)):
        key = keys[b % len(keys), 0].double() * factors(key_scale[b % len(keys), 0]).double()
        asked = queries[b, j, t].double() * query_scale[b, j, t].double()
        out[b, 0, t] += gates[b, t, j].double() * (key @ asked).relu()
    return hidden(out / math.sqrt(heads * dim), start, stop)


@pytest.mark.parametrize(
    "shape",
    [
        {"dtype": "sign", "pool": "mean", "group": 3},
        {"dtype": "sign", "dim": 128, "group": 1, "kind": torch.float16},
        {"dtype": "int2", "pool": "max", "group": 3, "batch": 1, "count": 2},
        {"dtype": "int4", "pool": "sum", "dim": 128, "one_row": True, "window": False},
        {"dtype": "int4", "group": 1, "length": 1, "batch": 1, "window": False},
        {"dtype": "int8", "pool": "mean", "group": 8, "kind": torch.float32, "pow2": True},
        {"dtype": "fp8_e4m3", "pool": "max", "group": 3, "pow2": True},
        {"dtype": "fp8_e4m3", "dim": 128, "group": 4, "groups": 1},
    ],
    ids=str,
)
def test_it_is_the_product_with_what_the_codes_stand_for(shape):
    given = case(**shape)
    found = score_codes(**given, backend="triton")
    want = slow(**given)
    assert found.dtype == torch.float32 and found.shape == want.shape
    assert error(found, want) <= bound(given["dtype"])
    assert error(score_codes(**given, backend="torch"), want) <= 1e-5


@pytest.mark.parametrize(
    "shape", [{"heads": 3, "pow2": True}, {"dim": 128, "batch": 1}, {"one_row": True}], ids=str
)
def test_lightning_is_the_gated_sum_of_what_is_positive(shape):
    given = lightning(**shape)
    want = slow_lightning(**given)
    assert error(score_lightning(**given, backend="triton"), want) <= LIGHTNING
    assert error(score_lightning(**given, backend="torch"), want) <= 1e-5


def test_a_window_of_one_row_serves_every_row_and_may_be_empty():
    given = case("sign", "sum", groups=1)
    given |= {"stop": torch.tensor([[0]], dtype=torch.int32, device=DEVICE), "start": None}
    assert score_codes(**given, backend="triton").eq(-math.inf).all()
    given["stop"] += 5
    assert error(score_codes(**given, backend="triton"), slow(**given)) <= INTEGERS
    given["start"] = torch.full((2, 3), 5, dtype=torch.int32, device=DEVICE)[:, 1]  # strided
    assert score_codes(**given, backend="triton").eq(-math.inf).all()


@pytest.mark.parametrize("pool", [None, "sum"])
@pytest.mark.parametrize("dim", [64, 128])
def test_words_of_signs_that_hold_one_bit_or_none(dim, pool):
    """The law of turned queries (topkit.kernels.score.sign_transform) is linear, and these are its basis."""
    bits = torch.cat([torch.eye(dim), torch.zeros(1, dim), torch.rand(50, dim).round()]).to(DEVICE)
    told = {"codes": signs(2 * bits - 1)[None, None], "dtype": "sign", "pool": pool}
    told |= {"queries": torch.randn(2, 3, 2, dim, device=DEVICE).half(), "scale": None}
    want = slow(**told, start=None, stop=None)
    assert error(score_codes(**told, backend="triton"), want) <= INTEGERS


def test_signs_for_queries_whose_components_are_alike():
    """Where turning makes them largest."""
    given = case(dtype="sign", pool=None, dim=128)
    given["queries"] = torch.ones_like(given["queries"])
    assert error(score_codes(**given, backend="triton"), slow(**given)) <= ALIKE


def test_queries_of_zeros_and_of_one_outlier():
    given = case("int8", groups=1)
    given["queries"][0] = 0
    given["queries"][1, :, :, 3] = 1000.0
    want, found = slow(**given), score_codes(**given, backend="triton")
    assert error(found[1], want[1]) <= INTEGERS
    assert torch.equal(found[0].isfinite(), want[0].isfinite())
    assert found[0][found[0].isfinite()].eq(0).all()


@pytest.mark.parametrize("pool", [None, "mean", "max"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_nan_shows_where_it_shows_in_the_definition(dtype, pool):
    given = case(dtype, pool, group=3, groups=1, window=False, length=70)
    given["queries"][0, 1, 0, 7] = math.nan
    if dtype == "fp8_e4m3" and CUDA:  # the interpreter multiplies it as if it were 480
        given["codes"][1, 0, 5].view(torch.uint8)[3] = 0x7F
    elif given["scale"] is not None:
        given["scale"][1, 0, 5] = math.nan
    want = score_codes(**given, backend="torch").isnan()
    assert want.any() and torch.equal(score_codes(**given, backend="triton").isnan(), want)


# The interpreter multiplies an fp8 NaN as if it were 480.
@pytest.mark.parametrize("name", ["gates", "key_scale", *(["queries", "keys"] if CUDA else [])])
def test_lightning_hides_no_nan(name):
    given = lightning(batch=1, heads=3)
    at = {"queries": (0, 1, 0, 5), "keys": (0, 0, 5, 3), "gates": (0, 1, 1)}.get(name, (0, 0, 5, 0))
    if name in ("queries", "keys"):
        given[name].view(torch.uint8)[at] = 0x7F
    else:
        given[name][at] = math.nan
    want = score_lightning(**given, backend="torch").isnan()
    found = score_lightning(**given, backend="triton")
    assert want.any() and torch.equal(found.isnan(), want)


@pytest.mark.parametrize("size", [{"count": 0}, {"length": 0}, {"batch": 0}], ids=str)
def test_nothing_gives_nothing(size):
    given = case(**size, window=False)
    found = score_codes(**given, backend="triton")
    assert found.shape == score_codes(**given, backend="torch").shape and found.numel() == 0


REFUSED = {
    "dtype must be one of sign, .*; got 'int3'": lambda a: {"dtype": "int3"},
    "pool must be one of None, mean, sum, max; got 'min'": lambda a: {"pool": "min"},
    "queries must have 4 dimensions": lambda a: {"queries": a["queries"][0]},
    "queries must be floating-point": lambda a: {"queries": a["queries"].int()},
    "queries must be bfloat16, float16 or float32": lambda a: {"queries": a["queries"].double()},
    "queries must have at most 32 heads": lambda a: {"queries": a["queries"].repeat(1, 10, 1, 1)},
    "queries must be contiguous": lambda a: {"queries": a["queries"].repeat(1, 1, 1, 2)[..., ::2]},
    "queries must not require grad": lambda a: {"queries": a["queries"].float().requires_grad_()},
    "codes must have a divisor of 7 heads": lambda a: {"queries": a["queries"][:, :7]},
    "codes must be int8; got torch.uint8": lambda a: {"codes": a["codes"].view(torch.uint8)},
    r"codes must be \(2, 2, 333, 64\)": lambda a: {"codes": a["codes"][..., :32]},
    "codes must be on .* got meta": lambda a: {"codes": a["codes"].to("meta")},
    "codes must lie one behind the other; got stride 128": lambda a: {"codes": a["codes"][:, :, ::2], "scale": a["scale"][:, :, ::2]},
    "scale must be given for int8": lambda a: {"scale": None},
    "scale must be None for sign": lambda a: {"dtype": "sign", "codes": a["codes"][..., :8].view(torch.uint8)},
    r"scale must be \(2, 2, 333, 1\)": lambda a: {"scale": a["scale"][:, :, 1:]},
    "scale must be float32 or int8": lambda a: {"scale": a["scale"].half()},
    "scale must lie one behind the other": lambda a: {"scale": a["scale"].repeat(1, 1, 1, 2)[..., :1]},
    r"start must be \(2,\); got \(1,\)": lambda a: {"start": a["start"][:1]},
    "start must be int64 or int32": lambda a: {"start": a["start"].float()},
    r"stop must be \(2, 1\); got \(2,\)": lambda a: {"stop": a["stop"][:, 0]},
    "stop must be on": lambda a: {"stop": a["stop"].to("meta")},
    "backend must be one of": lambda a: {"backend": "cuda"},
}  # fmt: skip


@pytest.mark.parametrize("message", REFUSED)
def test_bad_input_is_refused_by_name(message, monkeypatch):
    monkeypatch.setattr(impl, "score_codes", lambda *args, **options: pytest.fail("launched"))
    given = case() | {"backend": "triton"}
    with pytest.raises(InputError, match=message):
        score_codes(**given | REFUSED[message](given))


LIGHTNING_REFUSED = {
    "queries must be float8_e4m3fn, with scales": lambda a: {"queries": a["queries"].float()},
    "keys must be float8_e4m3fn, with scales": lambda a: {"keys": a["keys"].float()},
    r"keys must be \(2, 1, 333, 64\)": lambda a: {"keys": a["keys"].repeat(1, 2, 1, 1)},
    r"gates must be \(2, 2, 8\)": lambda a: {"gates": a["gates"].mT},
    "gates must be float32": lambda a: {"gates": a["gates"].half()},
    "query_scale must be float32; got None": lambda a: {"query_scale": None},
    r"query_scale must be \(2, 8, 2, 1\)": lambda a: {"query_scale": a["query_scale"][:, :1]},
    "key_scale must be float32 or int8; got None": lambda a: {"key_scale": None},
    r"key_scale must be \(2, 1, 333, 1\)": lambda a: {"key_scale": a["key_scale"][:, :, 1:]},
    "queries must have 64 or 128 dimensions; got 32": lambda a: {"queries": a["queries"][..., :32], "keys": a["keys"][..., :32]},
}  # fmt: skip


@pytest.mark.parametrize("message", LIGHTNING_REFUSED)
def test_bad_input_to_lightning_is_refused_by_name(message, monkeypatch):
    monkeypatch.setattr(impl, "score_codes", lambda *args, **options: pytest.fail("launched"))
    given = lightning() | {"backend": "triton"}
    with pytest.raises(InputError, match=message):
        score_lightning(**given | LIGHTNING_REFUSED[message](given))


def test_what_the_kernels_do_not_take_runs_in_torch():
    given = case(dim=16)
    assert torch.equal(score_codes(**given), reference.score_codes(**given))
    given = lightning()
    given["gates"].requires_grad_()
    found = score_lightning(**given)
    found.masked_fill(found.isinf(), 0).sum().backward()
    assert given["gates"].grad is not None and given["gates"].grad.ne(0).any()


@gpu
@pytest.mark.gpu
@pytest.mark.parametrize("group", [1, 3, 4, 8])
@pytest.mark.parametrize("dim", [64, 128])
@pytest.mark.parametrize("pool", POOLS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_form(dtype, pool, dim, group):
    # Each is a kernel to compile: lengths and scales go with the group, not with every form.
    length, pow2 = {1: (5003, False), 3: (127, True), 4: (4096, False), 8: (1001, True)}[group]
    given = case(dtype, pool, group, dim, length=length, pow2=pow2, count=3)
    found = score_codes(**given, backend="triton")
    assert error(found, slow(**given)) <= bound(dtype)


@gpu
@pytest.mark.gpu
@pytest.mark.parametrize("dim", [64, 128])
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_widest_groups_and_a_single_key(dtype, dim):
    for length in (1, 3000):
        given = case(dtype, "max", 32, dim, groups=1, length=length, window=length > 1)
        found = score_codes(**given, backend="triton")
        assert error(found, slow(**given)) <= bound(dtype)


@gpu
@pytest.mark.gpu
@pytest.mark.parametrize("heads", [1, 3, 4, 8, 32, 64])
@pytest.mark.parametrize("dim", [64, 128])
def test_every_form_of_lightning(heads, dim):
    for length in (47, 5003):
        given = lightning(heads, dim, length=length)
        found = score_lightning(**given, backend="triton")
        assert error(found, slow_lightning(**given)) <= LIGHTNING


@gpu
@pytest.mark.gpu
def test_addresses_beyond_32_bits():
    groups, length = 17, 2**20 + 3
    g = torch.Generator(DEVICE).manual_seed(0)
    codes = torch.randint(
        -127, 128, (1, groups, length, 128), generator=g, device=DEVICE, dtype=torch.int8
    )
    scale = torch.rand(1, groups, length, 1, generator=g, device=DEVICE)
    queries = torch.randn(1, 4 * groups, 1, 128, generator=g, device=DEVICE).bfloat16()
    for rows in ((1, groups), (groups, 1)):  # the last head, and the last row
        given = {
            "queries": queries.view(rows[0], -1, 1, 128),
            "codes": codes.view(*rows, length, 128),
            "scale": scale.view(*rows, length, 1),
        }
        assert codes.numel() > 2**31
        found = score_codes(**given, dtype="int8", pool="mean", backend="triton")
        last = {name: x[-1:, -(4 if name == "queries" else 1) :] for name, x in given.items()}
        want = slow(**last, dtype="int8", pool="mean", start=None, stop=None)
        assert error(found[-1:, -1:], want) <= INTEGERS


@gpu
@pytest.mark.gpu
def test_scores_beyond_32_bits():
    given = case("sign", batch=1, groups=1, group=8, count=65, length=2**22 - 1, window=False)
    found = score_codes(**given, backend="triton")
    assert found.numel() > 2**31
    given["queries"] = given["queries"][:, -1:, -1:]
    assert error(found[:, -1:, -1:], slow(**given)) <= INTEGERS


@gpu
@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_captured_graph_replays_on_new_input(dtype):
    shape = {"dtype": dtype, "pool": "mean", "dim": 128, "length": 5000}
    given = case(**shape)
    score_codes(**given, backend="triton")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = score_codes(**given, backend="triton")
    for seed in range(1, 5):
        for name, new in case(**shape, seed=seed).items():
            if isinstance(new, Tensor):
                given[name].copy_(new)
        graph.replay()
        assert error(found, slow(**given)) <= bound(dtype)


@pytest.mark.parametrize("lists", [1, 8, 64, 659, 1000])
@pytest.mark.parametrize("tiles", [1, 13, 1024, 8192])
def test_programs_fill_a_gpu_a_whole_number_of_times(tiles, lists):
    config = layout.Config(128, 64, 4, 3, resident=5)
    each = config.share(tiles, lists, 132)
    programs = -(-tiles // each) * lists
    turns = -(-programs // 660)
    assert 1 <= each <= 64 or lists > 660
    if tiles * lists >= 660 * 64:  # enough for each program to have as much as it may
        assert programs >= 0.95 * turns * 660
    elif lists <= 660:
        assert turns == 1
    assert layout.Config(128, 64, 4, 3).share(tiles, lists, 132) == 64
