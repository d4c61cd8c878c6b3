"""The Triton kernel of attention over chosen keys: on a GPU, or in Triton's interpreter."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from device import CUDA, DEVICE, gpu
from topkit.errors import InputError
from topkit.kernels.gather_attention import gather_attention, reference

impl = pytest.importorskip("topkit.kernels.gather_attention.triton_impl")

pytestmark = pytest.mark.usefixtures("poisoned")


# Relative L2 errors: weights and output are rounded to 11 and 8 bits, each about 3e-4 and 2e-3 in L2;
# the interpreter truncates where a GPU rounds, which doubles them.
BOUND = {torch.float16: 2e-3, torch.bfloat16: 1e-2}

CONFIGS = {
    "one part": impl.Config(block=64, warps=4, stages=3, programs=0),
    "merged": impl.Config(block=64, warps=4, stages=3, programs=64),
}


def slow(q, k, v, indices, scaling, log_weights=None):
    """One query of one head after the other, in float64."""
    batch, heads, count, _ = q.shape
    out = torch.zeros(batch, heads, count, v.shape[3], dtype=torch.float64, device=q.device)
    for b in range(batch):
        for h in range(heads):
            key = k[b % len(k), h * k.shape[1] // heads]
            value = v[b % len(v), h * v.shape[1] // heads]
            s = h * indices.shape[1] // heads
            for t in range(count):
                there = indices[b, s, t] >= 0
                slots = indices[b, s, t][there].long()
                logits = scaling * (key[slots].double() @ q[b, h, t].double())
                if log_weights is not None:
                    logits = logits + log_weights[b, s, t][there].double()
                out[b, h, t] = logits.softmax(0) @ value[slots].double()
    return out


def error(found: Tensor, want: Tensor) -> float:
    return ((found.double() - want).norm() / want.norm()).item()


def case(
    heads=(4, 2, 2),
    batch=2,
    count=1,
    k=150,
    length=300,
    widths=(64, 64),
    dtype=torch.float16,
    index=torch.int64,
    one_cache=False,
    weighted=False,
    seed=0,
) -> dict:
    """Arguments on views of a longer cache, whose other slots are NaN; a sixth of the slots is -1."""
    g = torch.Generator(DEVICE).manual_seed(seed)
    hq, hk, hs = heads

    def randn(*shape, dtype=dtype):
        return torch.randn(*shape, generator=g, device=DEVICE).to(dtype)

    def cached(width):
        held = torch.full(
            (1 if one_cache else batch, hk, length + 9, width), math.nan, dtype=dtype, device=DEVICE
        )
        held[:, :, :length] = randn(*held[:, :, :length].shape)
        return held[:, :, :length]

    shape = (batch, hs, count, k)
    indices = torch.rand(batch, hs, count, length, generator=g, device=DEVICE).argsort(-1)[..., :k]
    indices = indices.masked_fill(torch.rand(shape, generator=g, device=DEVICE) < 1 / 6, -1)
    return {
        "queries": randn(batch, count, hq, widths[0]).transpose(1, 2),
        "keys": cached(widths[0]),
        "values": cached(widths[1]),
        "indices": indices.to(index),
        "scaling": 0.2,
        "log_weights": randn(*shape, dtype=torch.float32) if weighted else None,
    }


def launched(given: dict, config=None) -> Tensor:
    return impl._launch(**given, config=config)


@pytest.mark.parametrize(
    "shape",
    [
        {"heads": (4, 2, 4), "weighted": True},
        {"heads": (4, 2, 2), "count": 2, "one_cache": True, "index": torch.int32, "batch": 3},
        {"heads": (4, 2, 1), "widths": (64, 128), "weighted": True, "count": 2},
        {"heads": (20, 1, 1), "widths": (128, 64), "k": 1},
        {"heads": (4, 4, 4), "dtype": torch.bfloat16, "k": 128},
    ],
    ids=str,
)
def test_it_is_softmax_over_the_chosen_keys(shape):
    given = case(**shape)
    found = gather_attention(**given, backend="triton")
    want = slow(*given.values())
    assert found.dtype == given["queries"].dtype and found.shape == want.shape
    assert error(found, want) <= BOUND[found.dtype]


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_parts_merge_into_the_whole(config):
    given = case(weighted=True)
    given["indices"][0, 0, 0, :70] = -1  # a part that is empty
    given["indices"][1, 1] = -1
    found = launched(given, config)
    assert error(found, slow(*given.values())) <= BOUND[found.dtype]
    assert found[1, 2:].eq(0).all()


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("name", ["queries", "keys", "values", "log_weights"])
def test_a_nan_and_an_infinity_show_where_they_show_in_the_reference(config, name):
    given = case(batch=1, weighted=True)
    given["indices"][0, :, 0, 9] = 5
    where = {"queries": (0, 3, 0, 2), "log_weights": (0, 1, 0, 9)}.get(name, (0, 1, 5, 2))
    for bad in (math.nan, math.inf, -math.inf):
        given[name][where] = bad
        want = reference.gather_attention(**given)
        found = launched(given, config)
        assert torch.equal(found.isfinite(), want.isfinite())
        assert torch.equal(found.isnan(), want.isnan())


def test_slots_that_are_not_chosen_are_not_read():
    given = case()
    given["keys"][:, :, 0], given["values"][:, :, 0] = math.nan, math.nan
    given["indices"][given["indices"] == 0] = -1
    assert gather_attention(**given, backend="triton").isfinite().all()


def test_a_slot_beyond_the_cache_gives_nan():
    given = case(batch=1)
    given["indices"][0, 0, 0, 3] = 300
    found = gather_attention(**given, backend="triton")
    assert found[0, :2].isnan().all() and found[0, 2:].isfinite().all()


def test_no_query_gives_no_output():
    given = case()
    given["queries"], given["indices"] = given["queries"][:, :, :0], given["indices"][:, :, :0]
    assert gather_attention(**given, backend="triton").shape == (2, 4, 0, 64)


@pytest.mark.parametrize(
    ("lists", "kept", "splits"),
    [(8, 2048, 32), (64, 2048, 6), (256, 2048, 1), (8, 1, 1), (1, 9999, 64)],
)
def test_parts_fill_the_gpu_once(lists, kept, splits):
    config = impl.Config(block=64, warps=4, stages=3, programs=3)
    assert impl._splits(lists, kept, 132, config) == splits


UNSUPPORTED = {
    "queries must be bfloat16 or float16": lambda a: {"queries": a["queries"].float()},
    "keys must be bfloat16 or float16, all alike": lambda a: {"keys": a["keys"].bfloat16()},
    "values must have 64 or 128 dimensions; got 60": lambda a: {"values": a["values"][..., :60]},
    "keys must be contiguous in the last dimension": lambda a: {
        "keys": a["keys"].mT.contiguous().mT
    },
    "keys must not require gradients": lambda a: {
        "keys": a["keys"].detach().clone().requires_grad_()
    },
    "queries must have at most 64 heads": lambda a: {
        "queries": a["queries"].repeat(1, 33, 1, 1),
        "indices": a["indices"][:, :1],
        "log_weights": None,
    },
    "rest_values must be None": lambda a: {
        "rest_values": a["queries"][..., None, :],
        "rest_logits": a["queries"][..., :1],
    },
    "indices must hold .* k = 0": lambda a: {
        "indices": a["indices"][..., :0],
        "log_weights": a["log_weights"][..., :0],
    },
}
REFUSED = {
    "queries must have 4 dimensions": lambda a: {"queries": a["queries"][0]},
    "keys must have a divisor of 3 heads": lambda a: {"queries": a["queries"][:, :3]},
    r"keys must be \(2, 2, 300, 64\); got \(3,": lambda a: {"keys": a["keys"][[0, 1, 1]]},
    r"values must be \(2, 2, 300, 64\); got \(2, 2, 299": lambda a: {
        "values": a["values"][:, :, 1:]
    },
    "indices have 3 heads; expected 4": lambda a: {"indices": a["indices"][:, [0, 1, 1]]},
    "indices must be int64 or int32": lambda a: {"indices": a["indices"].to(torch.int16)},
    r"indices must be \(2, 2, 1, 150\); got \(2, 2, 2": lambda a: {
        "indices": a["indices"][:, :, [0, 0]]
    },
    "indices must be on .* got meta": lambda a: {"indices": a["indices"].to("meta")},
    r"log_weights must be \(2, 2, 1, 150\)": lambda a: {"log_weights": a["log_weights"][..., 1:]},
    "log_weights must be floating-point": lambda a: {"log_weights": a["indices"]},
    "rest_values must have 5 dimensions": lambda a: {
        "rest_values": a["queries"],
        "rest_logits": a["queries"],
    },
    r"rest_logits must be \(2, 4, 1, 1\)": lambda a: {
        "rest_values": a["queries"][..., None, :],
        "rest_logits": a["queries"],
    },
    "rest_values must come with one of": lambda a: {"rest_values": a["queries"][..., None, :]},
}


@pytest.mark.parametrize("backend", ["triton", "torch"])
@pytest.mark.parametrize("message", REFUSED)
def test_bad_input_is_refused_by_name(message, backend, monkeypatch):
    monkeypatch.setattr(impl, "_launch", lambda *args, **options: pytest.fail("launched"))
    given = case(weighted=True)
    with pytest.raises(InputError, match=message):
        gather_attention(**given | REFUSED[message](given), backend=backend)


@pytest.mark.parametrize("message", UNSUPPORTED)
def test_what_the_kernel_does_not_take_is_named_where_it_is_asked_for(message, monkeypatch):
    monkeypatch.setattr(impl, "_launch", lambda *args, **options: pytest.fail("launched"))
    given = case(weighted=True)
    with pytest.raises(InputError, match=message):
        gather_attention(**given | UNSUPPORTED[message](given), backend="triton")


def test_a_slot_beyond_the_cache_is_never_anothers_key():
    """The definition refuses it on a CPU, and answers NaN on a GPU, as the kernel does."""
    given = case(heads=(4, 2, 2), batch=1, dtype=torch.float32)
    given["indices"][0, 0, 0, 3] = 300
    if not CUDA:
        with pytest.raises(InputError, match=r"indices must be less than 300.*got 300"):
            gather_attention(**given, backend="torch")
        return
    found = gather_attention(**given, backend="torch")
    assert found[0, :2].isnan().all() and found[0, 2:].isfinite().all()


def test_what_the_kernel_does_not_take_runs_in_torch():
    given = case()
    rest = {
        "rest_values": given["queries"][..., None, :],
        "rest_logits": torch.zeros(2, 4, 1, 1, device=DEVICE),
    }
    assert torch.equal(
        gather_attention(**given, **rest), reference.gather_attention(**given, **rest)
    )


@gpu
@pytest.mark.gpu
@pytest.mark.parametrize("config", [None, *CONFIGS.values()], ids=["default", *CONFIGS])
def test_many_long_lists(config):
    given = case(
        (32, 8, 8), batch=8, k=2048, length=131072, widths=(128, 128), dtype=torch.bfloat16
    )
    found = launched(given, config)
    assert error(found, slow(*given.values())) <= BOUND[found.dtype]


@gpu
@pytest.mark.gpu
def test_addresses_beyond_32_bits():
    length = 2**24 + 64
    cache = torch.full((1, 1, length, 128), math.nan, dtype=torch.bfloat16, device=DEVICE)
    indices = torch.arange(length - 100, length, device=DEVICE).expand(1, 1, 1, -1)
    cache[:, :, -100:] = torch.randn(100, 128, device=DEVICE)
    queries = torch.randn(1, 4, 1, 128, dtype=torch.bfloat16, device=DEVICE)
    for dtype in (torch.int64, torch.int32):
        found = gather_attention(
            queries, cache, cache, indices.to(dtype), scaling=0.1, backend="triton"
        )
        assert error(found, slow(queries, cache, cache, indices, 0.1)) <= BOUND[found.dtype]
    # As a last row or head, rather than a last slot, of a cache that long.
    rows = cache.view(-1, 1, 64, 128)
    asked = queries.expand(len(rows), -1, -1, -1)
    last = torch.arange(64, device=DEVICE).expand(len(rows), 1, 1, -1)
    found = gather_attention(asked, rows, rows, last, scaling=0.1, backend="triton")[-1:]
    assert error(found, slow(queries, rows[-1:], rows[-1:], last[-1:], 0.1)) <= BOUND[found.dtype]


@gpu
@pytest.mark.gpu
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_a_captured_graph_replays_on_new_input(config):
    shape = {"heads": (32, 8, 8), "k": 2000, "length": 4096, "dtype": torch.bfloat16}
    given = case(**shape)
    launched(given, config)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = launched(given, config)
    for seed in range(1, 9):
        for name, new in case(**shape, seed=seed).items():
            if isinstance(new, Tensor):
                given[name].copy_(new)
        graph.replay()
        assert error(found, slow(*given.values())) <= BOUND[found.dtype]
