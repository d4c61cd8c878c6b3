"""HashAttention (arXiv 2412.14468, section 4): bits of learned maps, compared by Hamming distance, in numpy."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from topkit.contract.draw import RANDOM
from topkit.indexers.spec import parse

LENGTH, BITS = 45, 12


def maps(groups, widths, seed):
    """Weights by (side, head), a list of (matrix, bias) each, and the file's tensors."""
    rng = np.random.default_rng(seed)
    tensors = {}
    for side, heads in (("query", 4), ("key", groups)):
        for n, (before, after) in enumerate(pairwise(widths)):
            tensors[f"0.{side}.{n}.weight"] = rng.normal(size=(heads, after, before))
            tensors[f"0.{side}.{n}.bias"] = rng.normal(size=(heads, after))
    return {name: x.astype(np.float32) for name, x in tensors.items()}


def bits(x, tensors, side, head, layers):
    for n in range(layers):
        if n:
            x = x / (1 + np.exp(-x))
        matrix = tensors[f"0.{side}.{n}.weight"][head].astype(float)
        x = matrix @ x + tensors[f"0.{side}.{n}.bias"][head]
    return x >= 0


@pytest.mark.parametrize("groups", [2, 4])
@pytest.mark.parametrize("hidden", [(), (10,), (9, 7)])
def test_the_fewest_bits_apart(tmp_path, groups, hidden):
    widths = (16, *hidden, BITS)
    tensors = maps(groups, widths, seed=len(hidden))
    path = tmp_path / "maps.safetensors"
    save_file({name: torch.from_numpy(x) for name, x in tensors.items()}, path)
    recipe = parse(f"hashattention(weights='{path}')")
    one = RANDOM(recipe, length=LENGTH, heads=(4, 2), start=(0, 7))
    got = one.ask(recipe, one.build(recipe, [20, LENGTH]), 9).indices
    for row, start in ((0, 0), (1, 7)):
        for head in range(4):
            query = one.queries[row, head, -1].double().numpy()
            asked = bits(query, tensors, "query", head, len(widths) - 1)
            keys = one.keys[row, head // 2].double().numpy()
            # Maps of keys are a KV head's, or a query head's own.
            own = head if groups == 4 else head // 2
            apart = {
                s: int((bits(keys[s], tensors, "key", own, len(widths) - 1) != asked).sum())
                for s in range(start, LENGTH)
            }
            want = sorted(apart, key=lambda s: (apart[s], s))[:9]
            assert got[row, head, 0].tolist() == want
