"""mxfp4 and nvfp4, block by block and number by number.

mxfp4: 32 numbers of E2M1 share a power of two (OCP Microscaling v1.0, section 5.2), the least by which none
exceeds 6, as DeepSeek's code rounds scales up; section 6.3 would take 2^(floor(log2 amax) - 2). nvfp4: arXiv
2509.25149, section 2 and appendix: 16 numbers share an E4M3 scale, amax / 6 in units of the tensor's own
float32 scale, amax of all / (6 * 448).
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch

from topkit.errors import InputError
from topkit.indexers import Step
from topkit.indexers.spec import parse
from topkit.kernels.score import score_lightning

E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


def known(dtype: str) -> bool:
    try:
        parse(f"quantized:dtype={dtype}")
    except InputError:
        return False
    return True


pytestmark = pytest.mark.skipif(not known("mxfp4"), reason="quantized has no mxfp4")


def e2m1(x: float) -> float:
    """The nearest number of E2M1, of two equally near ones that with an even last bit; 6 beyond."""
    best = min(range(len(E2M1)), key=lambda n: (abs(abs(x) - E2M1[n]), n % 2))
    return math.copysign(E2M1[best], x)


def e4m3(x: float) -> float:
    return float(torch.tensor(min(x, 448.0)).to(torch.float8_e4m3fn))


def mxfp4(keys: torch.Tensor) -> torch.Tensor:
    out = torch.zeros_like(keys)
    for at in range(0, len(keys), 32):
        block = keys[at : at + 32]
        most = float(block.abs().max())
        if most:
            scale = 2.0 ** math.ceil(math.log2(most / 6))
            out[at : at + 32] = torch.tensor([e2m1(float(x) / scale) * scale for x in block])
    return out


def nvfp4(keys: torch.Tensor, tensor: float) -> torch.Tensor:
    out = torch.zeros_like(keys)
    for at in range(0, len(keys), 16):
        block = keys[at : at + 16]
        scale = e4m3(float(block.abs().max()) / 6 / tensor) * tensor
        if scale:
            out[at : at + 16] = torch.tensor([e2m1(float(x) / scale) * scale for x in block])
    return out


def drawn(width: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    keys = torch.randn(1, 2, 40, width, generator=generator)
    return keys * torch.logspace(-2, 2, 40)[:, None]


def decoded(spec: str, keys: torch.Tensor, width: int) -> torch.Tensor:
    """What a recipe makes of keys [1, H, T, D]: scores of unit queries, one a dimension."""
    index = parse(spec).build(keys, Step(kv_heads=2))
    units = torch.eye(width)[None, None].expand(1, 2, width, width)
    stop = torch.full((1, width), keys.shape[2])
    return index.score(units, Step(kv_heads=2, stop=stop)).mT


@pytest.mark.parametrize("width", [16, 32, 64, 72, 128])
@pytest.mark.parametrize("seed", range(3))
def test_mxfp4_number_by_number(width, seed):
    keys = drawn(width, seed)
    want = torch.stack([torch.stack([mxfp4(key) for key in head]) for head in keys[0]])[None]
    got = decoded("quantized:dtype=mxfp4", keys, width)
    assert torch.allclose(got, want, rtol=1e-6, atol=0)


@pytest.mark.parametrize("width", [16, 64, 72, 128])
@pytest.mark.parametrize("seed", range(3))
def test_nvfp4_number_by_number(width, seed):
    keys = drawn(width, seed)
    scales = [float(head.abs().max()) / (6 * 448) for head in keys[0]]
    want = torch.stack(
        [
            torch.stack([nvfp4(key, scale) for key in head])
            for head, scale in zip(keys[0], scales, strict=True)
        ]
    )[None]
    got = decoded("quantized:dtype=nvfp4", keys, width)
    assert torch.allclose(got, want, rtol=1e-5, atol=1e-7)


def test_ties_of_the_grid_go_to_the_even():
    """Halfway between two numbers of E2M1, in a block whose scale is 1."""
    halves = [(a + b) / 2 for a, b in pairwise(E2M1)]
    key = torch.tensor([6.0, *halves, *(-x for x in halves), 0.0])
    keys = torch.cat([key, torch.zeros(16)]).expand(1, 2, 3, -1).clone()
    got = decoded("quantized:dtype=mxfp4", keys, 32)
    want = torch.tensor([6.0, 0.0, 1.0, 1.0, 2.0, 2.0, 4.0, 4.0])
    assert torch.equal(got[0, 0, 0, :8], want)
    assert torch.equal(got[0, 0, 0, 8:15], -want[1:])


@pytest.mark.parametrize("dtype", ["mxfp4", "nvfp4"])
def test_selections_are_those_of_the_decoded_keys(dtype):
    keys, queries = (
        drawn(64, 5),
        torch.randn(1, 4, 1, 64, generator=torch.Generator().manual_seed(6)),
    )
    index = parse(f"quantized:dtype={dtype}").build(keys, Step(kv_heads=2))
    if dtype == "mxfp4":
        want = torch.stack([torch.stack([mxfp4(key) for key in head]) for head in keys[0]])
    else:
        tops = [float(head.abs().max()) / 2688 for head in keys[0]]
        want = torch.stack(
            [
                torch.stack([nvfp4(key, top) for key in head])
                for head, top in zip(keys[0], tops, strict=True)
            ]
        )
    scores = queries[0, :, 0].reshape(2, 2, 64) @ want.mT
    best = torch.sort(scores.view(4, 40), descending=True, stable=True).indices[:, :7]
    got = index.select(queries, 7, Step(kv_heads=2)).indices[0, :, 0]
    assert torch.equal(got, best)


@pytest.mark.parametrize(
    ("dtype", "rendered"), [("mxfp4", mxfp4), ("nvfp4", lambda x: nvfp4(x, 1.0))]
)
def test_index_keys_of_lightning_are_packed_blocks_of_the_rotated_key(dtype, rendered):
    """68 bytes of 128 dimensions for mxfp4; scores are those of the rendering of keys and queries alike."""
    draw = torch.Generator().manual_seed(4)
    keys, queries = (torch.randn(1, h, t, 128, generator=draw) for h, t in ((1, 40), (3, 1)))
    keys[0, 0, 5] *= 30
    gates = torch.randn(1, 1, 3, generator=draw)
    given = {"index_keys": keys, "index_queries": queries, "index_weights": gates}
    recipe: Any = parse(f"lightning(weights='given', dtype='{dtype}')")
    step = Step(inputs=given)
    index: Any = recipe.build(keys, step)
    block = {"mxfp4": 32, "nvfp4": 16}[dtype]
    assert index.nbytes == 40 * (64 + 128 // block)
    turn = hadamard(128)
    plain = [[rendered(x @ turn) for x in part[0].flatten(0, 1)] for part in (keys, queries)]
    own, asked = (torch.stack(rows) for rows in plain)
    held = recipe.vectors_of(index.codes)[0, 0]
    assert torch.equal(held, own)
    want = (gates[0, 0][:, None] * (asked.double() @ own.double().T).clamp_min(0)).sum(0)
    want = want * (3 * 128) ** -0.5
    got = index.score(torch.zeros(1, 2, 1, 8), step)[0, 0, 0]
    assert torch.allclose(got.double(), want, rtol=1e-5, atol=1e-5)
    chosen = index.select(torch.zeros(1, 2, 1, 8), 7, step).indices[0, 0, 0]
    assert chosen.tolist() == got.sort(descending=True, stable=True).indices[:7].tolist()


def hadamard(width: int) -> torch.Tensor:
    """Sylvester's, orthonormal."""
    turn = torch.ones(1, 1)
    while len(turn) < width:
        turn = torch.cat([torch.cat([turn, turn], 1), torch.cat([turn, -turn], 1)])
    return turn * width**-0.5


def test_index_keys_that_nvfp4_cannot_hold_are_refused():
    recipe = parse("lightning(weights='given', dtype='nvfp4')")
    for times in (1e-3, 1e4):
        keys = torch.randn(1, 1, 9, 32, generator=torch.Generator().manual_seed(0)) * times
        with pytest.raises(InputError, match=r"nvfp4 holds index keys .* got .*; scale them"):
            recipe.build(keys, Step(inputs={"index_keys": keys}))


def test_packed_keys_without_the_scales_of_blocks_are_refused():
    queries, keys, gates = (
        torch.randn(1, 2, 1, 32),
        torch.zeros(1, 1, 5, 16).byte(),
        torch.ones(1, 1, 2),
    )
    for scale, said in (
        (None, "packed keys must have scales of blocks"),
        (torch.ones(1, 1, 5, 1), "packed keys must have scales of blocks"),
        (torch.ones(1, 1, 5, 3).byte(), "key_scale must be"),
    ):
        with pytest.raises(InputError, match=said):
            score_lightning(queries, keys, gates, key_scale=scale)
