"""nvfp4's tensor scale: one a row and head, set at the build and then kept."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from topkit.contract.draw import RANDOM
from topkit.errors import InputError
from topkit.indexers import Step
from topkit.indexers.quantized import quantized
from topkit.indexers.spec import parse
from topkit.indexers.tensor_scale import ScaledIndex
from topkit.kernels import fp4
from topkit.kernels.codes import hadamard_rotate


def built(recipe, one, cuts):
    index = one.build(recipe, cuts)
    assert isinstance(index, ScaledIndex)
    return index


@pytest.mark.parametrize(("center", "hadamard"), [(False, False), (True, False), (True, True)])
def test_codes_are_of_keys_over_the_largest_magnitude_of_the_build(center, hadamard):
    one = RANDOM(quantized(), length=30, start=(0, 7))
    one = replace(one, keys=one.keys * torch.tensor([1.0, 50.0])[:, None, None])
    recipe = quantized("nvfp4", hadamard, center=center)
    index = built(recipe, one, [20, 30])
    for row, start in enumerate((0, 7)):
        for head in range(2):
            keys = one.keys[row, head, start:]
            keys = keys - keys[: 20 - start].double().mean(0).float() if center else keys
            turned = hadamard_rotate(keys) if hadamard else keys
            scale = turned[: 20 - start].abs().max() / torch.tensor(6.0 * 448.0)
            assert torch.equal(index.scale[row, head, 0, 0], scale)
            scaled = hadamard_rotate(keys / scale) if hadamard else keys / scale
            codes, scales = fp4.quantize(scaled, "nvfp4")
            assert torch.equal(index.codes["codes"][row, head, start:], codes)
            own = index.codes["scale"][row, head, start:]
            assert torch.equal(own.view(torch.uint8), scales.view(torch.uint8))


def test_scores_are_near_those_of_the_keys_whatever_their_size():
    one = RANDOM(quantized(), length=200, rows=1)
    for size in (2.0**-60, 1.0, 2.0**60):
        large = replace(one, keys=one.keys * size)
        index = built(quantized("nvfp4"), large, [200])
        step = large.step(quantized("nvfp4"), slice(199, 200), 200)
        scores = index.score(large.queries[:, :, 199:], step) / size
        exact = one.queries[:, :, 199:] @ one.keys.repeat_interleave(2, 1).mT
        assert 0 < (scores - exact).norm() / exact.norm() < 0.15


def test_it_stays_through_a_life_and_is_counted():
    one = RANDOM(quantized(), length=30, rows=2)
    recipe = quantized("nvfp4", center=True)
    index = built(recipe, one, [20])
    first, mean = index.scale.clone(), index.mean
    assert mean is not None
    assert index.nbytes == 2 * 2 * (20 * (8 + 1) + 4 + 16 * 4)
    index.append(one.keys[:, :, 20:] * 1000, Step(kv_heads=2))
    assert torch.equal(index.scale, first)
    # What exceeds the build's largest magnitude is cut to it.
    assert fp4.factors(index.codes["scale"]).max() == 448
    twin = index.fork()
    index.reorder(torch.tensor([1, 1, 0]))
    assert torch.equal(index.scale, first[[1, 1, 0]])
    assert index.mean is not None and torch.equal(index.mean, mean[[1, 1, 0]])
    assert isinstance(twin, ScaledIndex) and torch.equal(twin.scale, first)


def test_nothing_and_zeros_have_a_scale_of_one():
    for keys in (torch.zeros(1, 2, 0, 16), torch.zeros(1, 2, 3, 16)):
        index = quantized("nvfp4").build(keys, Step(kv_heads=2))
        assert isinstance(index, ScaledIndex)
        assert index.scale.flatten().tolist() == [1, 1]
        index.append(torch.ones(1, 2, 1, 16), Step(kv_heads=2))
        chosen = index.select(torch.ones(1, 2, 1, 16), 1, Step(kv_heads=2)).indices
        assert chosen.flatten().tolist() == [keys.shape[2]] * 2


def test_blocks_have_scales_of_their_own():
    with pytest.raises(InputError, match="quantized: mxfp4 has scales of its own"):
        parse("quantized:dtype=mxfp4,scale=pow2")
    with pytest.raises(InputError, match="mxfp4, nvfp4; got 'fp4'"):
        parse("quantized:dtype=fp4")
