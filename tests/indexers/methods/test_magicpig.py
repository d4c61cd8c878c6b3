"""MagicPIG (arXiv 2410.16179, section 4): which keys are drawn how often, and what each then weighs."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from topkit.contract.draw import RANDOM
from topkit.indexers.spec import parse

SINK, WINDOW, LENGTH = 2, 5, 40


def weights_of(selection):
    assert selection.log_weights is not None
    return selection.log_weights


def chance(query, key, bits, tables):
    """That a key meets a query in at least two tables, by the angle between them."""
    cosine = float(query @ key / (query.norm() * key.norm()))
    same = (1 - math.acos(max(-1.0, min(1.0, cosine))) / math.pi) ** bits
    return 1 - (1 - same) ** tables - tables * same * (1 - same) ** (tables - 1)


@pytest.mark.parametrize(("bits", "tables"), [(4, 20), (6, 40)])
@pytest.mark.parametrize("center", [True, False])
def test_keys_are_drawn_by_their_angle_and_weigh_the_inverse(bits, tables, center):
    recipe = parse(
        f"magicpig(bits={bits}, tables={tables}, sink={SINK}, window={WINDOW}, center={center})"
    )
    one = RANDOM(recipe, length=LENGTH, heads=(4, 2), rows=1)
    one = replace(one, keys=one.keys + 1.5)
    seeds, drawn = 120, torch.zeros(4, LENGTH)
    ends = {*range(SINK), *range(LENGTH - WINDOW, LENGTH)}
    want = torch.zeros(4, LENGTH, dtype=torch.float64)
    for head in range(4):
        keys, query = one.keys[0, head // 2].double(), one.queries[0, head, -1].double()
        # Centred by the mean of the keys that are hashed.
        about = keys - keys[SINK : LENGTH - WINDOW].mean(0) if center else keys
        want[head] = torch.tensor([chance(query, key, bits, tables) for key in about])
    for seed in range(seeds):
        other = replace(one, seed=seed)
        chosen = other.ask(recipe, other.build(recipe), LENGTH)
        for head in range(4):
            slots, weights = chosen.indices[0, head, 0], weights_of(chosen)[0, head, 0]
            for slot, weight in zip(slots.tolist(), weights.tolist(), strict=True):
                if slot in ends:
                    assert weight == 0
                elif slot >= 0:
                    drawn[head, slot] += 1
                    assert abs(weight + math.log(float(want[head, slot]))) < 1e-3
            assert ends <= set(slots.tolist())
    middle = slice(SINK, LENGTH - WINDOW)
    rate, chances = drawn[:, middle] / seeds, want[:, middle]
    # Of 132 keys, by how many standard deviations of a proportion.
    far = (rate - chances) / (chances * (1 - chances) / seeds + 1e-4).sqrt()
    assert float(far.abs().max()) < 5
    assert abs(float(far.mean())) < 0.5
