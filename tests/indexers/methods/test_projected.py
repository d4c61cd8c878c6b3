"""`projected`: products of queries and keys, each through its own head's learnt map to few dimensions."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from plainly import arrays, best, chosen, stream
from topkit.contract.draw import RANDOM
from topkit.experiments.train.lightning import save_weights
from topkit.indexers.spec import parse

RANK, WIDTH = 5, 16


def bfloat16(x: np.ndarray) -> np.ndarray:
    """Each number rounded to the nearest of 8 bits of mantissa, a half to the even one."""
    mantissa, exponent = np.frexp(x)
    return np.ldexp(np.round(mantissa * 256) / 256, exponent)


def learnt(folder, heads=(4, 2), rank=RANK, whole=False):
    """Drawn maps of two layers {(layer, side): [heads, r, D]}, and the recipe of their file."""
    rng, maps = np.random.default_rng(rank), {}
    for layer in range(2):
        for side, count in zip(("queries", "keys"), heads, strict=True):
            shape = count, rank, WIDTH
            drawn = rng.integers(-2, 3, shape) if whole else rng.normal(size=shape)
            maps[layer, side] = drawn.astype(np.float32)
    tensors = {f"{layer}.{side}": torch.from_numpy(x) for (layer, side), x in maps.items()}
    return maps, parse(f"projected('{save_weights(folder, 'maps', tensors, kind='projected')}')")


def scores(query, keys, to_query, to_key):
    """The product of the two maps' images with each key, whose image is kept in bfloat16."""
    asked = [sum(a * b for a, b in zip(row, query, strict=True)) for row in to_query.astype(float)]
    found = []
    for key in keys:
        image = [sum(a * b for a, b in zip(row, key, strict=True)) for row in to_key.astype(float)]
        found.append(sum(a * b for a, b in zip(asked, bfloat16(np.array(image)), strict=True)))
    return found


@pytest.mark.parametrize(("heads", "rank", "k"), [((4, 2), 5, 9), ((3, 1), 1, 4), ((2, 2), 16, 50)])
@pytest.mark.parametrize("layer", [0, 1])
def test_each_head_by_its_own_map_and_its_group_s(tmp_path, heads, rank, k, layer):
    maps, recipe = learnt(tmp_path, heads, rank)
    one = replace(RANDOM(recipe, length=33, rows=1, heads=heads, seed=rank), layer=layer)
    queries, keys = arrays(one)
    got = chosen(one, recipe, one.build(recipe, [20, 33]), k)
    for head in range(heads[0]):
        to_key = maps[layer, "keys"][head // (heads[0] // heads[1])]
        told = scores(queries[head, -1], keys[head], maps[layer, "queries"][head], to_key)
        assert got[head] == best(told, k)


def test_equal_scores_come_by_the_lowest_slot(tmp_path):
    maps, recipe = learnt(tmp_path, rank=2, whole=True)
    tied = 0
    for seed in range(3):
        one = RANDOM(recipe, length=40, rows=1, seed=seed, whole=True)
        queries, keys = arrays(one)
        for head, slots in enumerate(chosen(one, recipe, one.build(recipe), 15)):
            to_query, to_key = maps[0, "queries"][head], maps[0, "keys"][head // 2]
            told = scores(queries[head, -1], keys[head], to_query, to_key)
            assert slots == best(told, 15)
            last, after = best(told, 16)[-2:]
            tied += told[last] == told[after]
    assert tied  # otherwise no two tied at the cut


def test_what_bfloat16_does_not_tell_apart_is_equal(tmp_path):
    maps, recipe = learnt(tmp_path, rank=1)
    one = stream(recipe, 6)
    nearly = 1 + torch.arange(one.length) * 2**-12
    one = replace(one, keys=one.keys[:, :, :1] * nearly[:, None])
    queries, keys = arrays(one)
    got = chosen(one, recipe, one.build(recipe), 12)
    for head in range(4):
        to_query, to_key = maps[0, "queries"][head], maps[0, "keys"][head // 2]
        told = scores(queries[head, -1], keys[head], to_query, to_key)
        assert got[head] == best(told, 12)
        assert got[head] != best(np.sign(told) * range(one.length), 12)  # as unrounded ones order


def test_keys_that_come_one_by_one(tmp_path):
    maps, recipe = learnt(tmp_path)
    one = stream(recipe, 4, 26)
    queries, keys = arrays(one)
    index = one.build(recipe, [1])
    for length in range(2, 27):
        one.append(recipe, index, length)
        got = chosen(one, recipe, index, 6)
        for head in (0, 3):
            query, own = queries[head, length - 1], keys[head, :length]
            told = scores(query, own, maps[0, "queries"][head], maps[0, "keys"][head // 2])
            assert got[head] == best(told, 6)


def test_only_keys_that_a_query_sees(tmp_path):
    maps, recipe = learnt(tmp_path)
    starts = (0, 7, 28)
    one = RANDOM(recipe, length=30, start=starts, seed=2)
    got = one.ask(recipe, one.build(recipe), 8, 2).indices
    for row, first in enumerate(starts):
        queries, keys = one.queries[row].double().numpy(), one.keys[row].double().numpy()
        for head in range(4):
            to_query, to_key = maps[0, "queries"][head], maps[0, "keys"][head // 2]
            for stop in (29, 30):
                told = scores(queries[head, stop - 1], keys[head // 2], to_query, to_key)
                slots = got[row, head, stop - 29].tolist()
                assert [slot for slot in slots if slot >= 0] == best(told, 8, range(first, stop))


@pytest.mark.parametrize("mistake", ["another head's", "another layer's", "no map", "one side"])
def test_other_maps_choose_otherwise(tmp_path, mistake):
    maps, recipe = learnt(tmp_path, rank=WIDTH)
    one = stream(recipe, 5)
    queries, keys = arrays(one)
    got = chosen(one, recipe, one.build(recipe), 10)
    eye = np.eye(WIDTH)
    to_query, to_key = {
        "another head's": (maps[0, "queries"][1], maps[0, "keys"][0]),
        "another layer's": (maps[1, "queries"][0], maps[1, "keys"][0]),
        "no map": (eye, eye),
        "one side": (eye, maps[0, "keys"][0]),
    }[mistake]
    assert got[0] != best(scores(queries[0, -1], keys[0], to_query, to_key), 10)
