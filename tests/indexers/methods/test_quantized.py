"""Keys of one scale a vector, number by number: int8, int4, int2 and fp8.

DeepSeek-V3.2-Exp, inference/kernel.py: the scale is the largest magnitude, 1e-4 at least, over 448, rounded up to a
power of two where that is asked for; numbers are divided by it and stored as e4m3. The integers alike: 127 for int8.
int4 and int2, topkit's own, cut the range from minus the largest to the largest into 16 and 4 equal steps, and store a
step's middle; no paper says so, and that the ends are no levels was found by trial.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from plainly import Arrays, arrays, best, chosen, stream
from topkit.indexers.spec import parse

# What a vector's largest magnitude is, in units of its scale.
LARGEST = {"int8": 127, "int4": 8, "int2": 2, "fp8_e4m3": 448}
LENGTH, BUILT = 40, 30


def level(x: float, dtype: str) -> float:
    """The nearest number that the dtype has."""
    if dtype == "fp8_e4m3":
        return float(torch.tensor(x).to(torch.float8_e4m3fn))
    if dtype == "int8":
        return round(x)
    most = LARGEST[dtype] - 0.5
    return min(max(math.floor(x) + 0.5, -most), most)


def stored(key: Arrays, dtype: str, scale: str, amax: float = 0) -> Arrays:
    largest = max(float(abs(key).max()), amax)
    if not largest:
        return 0 * key
    unit = largest / LARGEST[dtype]
    unit = 2.0 ** math.ceil(math.log2(unit)) if scale == "pow2" else unit
    return unit * np.array([level(float(x) / unit, dtype) for x in key])


def hadamard(width: int) -> Arrays:
    """Sylvester's, orthonormal."""
    turn = np.ones((1, 1))
    while len(turn) < width:
        turn = np.block([[turn, turn], [turn, -turn]])
    return turn / math.sqrt(width)


@pytest.mark.parametrize("hadamard_too", [False, True])
@pytest.mark.parametrize("center", [False, True])
@pytest.mark.parametrize("scale", ["float", "pow2"])
@pytest.mark.parametrize("dtype", LARGEST)
def test_the_best_of_keys_rounded_number_by_number(dtype, scale, center, hadamard_too):
    recipe = parse(
        f"quantized(dtype='{dtype}', scale='{scale}', center={center}, hadamard={hadamard_too})"
    )
    for seed in range(3):
        one = stream(recipe, seed)
        queries, keys = arrays(one)
        index = one.build(recipe, [BUILT, LENGTH])
        got = chosen(one, recipe, index, 7)
        for head in range(4):
            mean = keys[head, :BUILT].mean(0) if center else 0
            turn = hadamard(keys.shape[-1]) if hadamard_too else np.eye(keys.shape[-1])
            own = [stored((key - mean) @ turn, dtype, scale) for key in keys[head]]
            assert got[head] == best(np.array(own) @ (queries[head, -1] @ turn), 7), f"head {head}"


@pytest.mark.parametrize("dtype", LARGEST)
def test_a_scale_does_not_follow_a_key_below_amax(dtype):
    """Such a key is stored more coarsely: one that is small enough as zeros, or as the least level."""
    recipe = parse(f"quantized(dtype='{dtype}', amax=0.5)")
    one = stream(recipe, 1)
    one.keys.mul_(torch.logspace(-4, 1, LENGTH)[:, None])
    queries, keys = arrays(one)
    index = one.build(recipe)
    last = slice(LENGTH - 1, LENGTH)
    scores = index.score(one.queries[:, :, last], one.step(recipe, last, LENGTH))[0, :, 0].numpy()
    for amax, same in ((0.5, True), (0, False)):
        want = [[stored(key, dtype, "float", amax) for key in keys[head]] for head in range(4)]
        products = [np.array(own) @ queries[head, -1] for head, own in enumerate(want)]
        assert np.allclose(scores, products, rtol=1e-4, atol=1e-5) == same
