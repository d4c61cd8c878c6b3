"""The lightning indexer, DeepSeek-V3.2's report, section 2.1, equation 1: sum over index heads of w ReLU(q . k).

Of index tensors as they are given; that a model's own are projected alike is held by what transformers chooses
(tests/indexers/public/lightning.json). fp8 as in DeepSeek-V3.2-Exp, inference: rotated, e4m3 under a power of two.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from plainly import best
from topkit.indexers import Step
from topkit.indexers.spec import parse

HEADS, LENGTH, WIDTH = 3, 40, 32


def hadamard(x: Tensor) -> Tensor:
    """By butterflies, orthonormal."""
    parts = x.double().tolist()
    gap = 1
    while gap < len(parts):
        for first in range(0, len(parts), 2 * gap):
            for n in range(first, first + gap):
                a, b = parts[n], parts[n + gap]
                parts[n], parts[n + gap] = a + b, a - b
        gap *= 2
    return torch.tensor(parts) / math.sqrt(len(parts))


def fp8(x: Tensor, scale: str) -> Tensor:
    turned = hadamard(x)
    unit = max(float(turned.abs().max()), 1e-4) / 448
    unit = 2.0 ** math.ceil(math.log2(unit)) if scale == "pow2" else unit
    return (turned / unit).float().to(torch.float8_e4m3fn).double() * unit


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    ("text", "rounded"),
    [
        ("dtype='fp32'", lambda x: x.double()),
        ("dtype='fp8'", lambda x: fp8(x, "pow2")),
        ("dtype='fp8', scale='float'", lambda x: fp8(x, "float")),
    ],
    ids=["fp32", "pow2", "float"],
)
def test_the_best_by_weighted_sums_of_what_is_positive(text, rounded, seed):
    draw = torch.Generator().manual_seed(seed)
    queries = torch.randn(1, HEADS, 1, WIDTH, generator=draw)
    keys = torch.randn(1, 1, LENGTH, WIDTH, generator=draw)
    weights = torch.randn(1, 1, HEADS, generator=draw)
    inputs = {"index_queries": queries, "index_keys": keys, "index_weights": weights}
    recipe: Any = parse(f"lightning(weights='given', {text})")
    index = recipe.build(keys, Step(inputs=inputs))
    scores: list[float] = []
    for key in keys[0, 0]:
        total = 0.0
        for head in range(HEADS):
            product = float(rounded(queries[0, head, 0]) @ rounded(key))
            total += float(weights[0, 0, head]) * max(product, 0)
        scores.append(total)
    got = index.select(torch.zeros(1, 2, 1, 8), 7, Step(inputs=inputs)).indices
    assert got.shape == (1, 1, 1, 7)
    assert got[0, 0, 0].tolist() == best(scores, 7)
