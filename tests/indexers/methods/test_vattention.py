"""vAttention (arXiv 2510.05688, section 4): the size of the sample, by its bound, and what a drawn key weighs."""

from __future__ import annotations

import math
from dataclasses import replace
from statistics import NormalDist

import torch

from topkit.contract.draw import RANDOM
from topkit.indexers.spec import parse

LENGTH, SINK, WINDOW = 400, 4, 8


def weights_of(selection):
    assert selection.log_weights is not None
    return selection.log_weights


def selections(spec, seeds, spread=1.0):
    recipe = parse(spec)
    one = RANDOM(recipe, length=LENGTH, heads=(2, 1), rows=1)
    one = replace(one, queries=one.queries * spread)
    index = one.build(recipe)
    scale = one.keys.shape[3] ** -0.5
    scores = scale * (one.queries[0, :, -1].double() @ one.keys[0, 0].double().T)
    return scores, [
        one_of.ask(recipe, index, LENGTH)
        for one_of in (replace(one, seed=seed) for seed in range(seeds))
    ]


def test_ends_and_best_keys_as_they_are_and_a_sample_of_the_others():
    heavy, sample = 0.05, 0.1
    spec = f"vattention(heavy={heavy}, sample={sample}, sink={SINK}, window={WINDOW}, epsilon=0.1, delta=0.1)"
    scores, chosen = selections(spec, 4)
    for selection in chosen:
        for head in range(2):
            slots, weights = selection.indices[0, head, 0], weights_of(selection)[0, head, 0]
            weighed = {
                s: w for s, w in zip(slots.tolist(), weights.tolist(), strict=True) if s >= 0
            }
            ends = {*range(SINK), *range(LENGTH - WINDOW, LENGTH)}
            sure = {s for s, w in weighed.items() if w == 0}
            assert ends <= sure
            best = [s for s in scores[head].argsort(descending=True).tolist() if s not in ends]
            top = len(sure - ends)
            assert sure - ends == set(best[:top])
            assert abs(top - heavy * LENGTH) <= 2
            rest = LENGTH - len(sure)
            drawn = {s: w for s, w in weighed.items() if s not in sure}
            for weight in drawn.values():
                assert abs(weight - math.log(rest / len(drawn))) < 1e-5
            assert len(drawn) >= math.floor(sample * rest)


def test_the_sample_is_as_large_as_the_bound_asks():
    """(z n sigma / (epsilon D))^2 keys, of the sampled weights' deviation and the whole sum, as estimated."""
    epsilon, delta, z = 0.08, 0.2, NormalDist().inv_cdf
    spec = f"vattention(heavy=0.02, sample=0.25, sink={SINK}, window={WINDOW}, epsilon={epsilon}, delta={delta})"
    scores, chosen = selections(spec, 60, spread=1.6)
    for head in range(2):
        sizes, weights = [], scores[head].exp()
        for selection in chosen:
            slots, own = selection.indices[0, head, 0], weights_of(selection)[0, head, 0]
            sure = slots[(own == 0) & (slots >= 0)]
            sizes.append(int((own > 0).sum()))
        rest = torch.ones(LENGTH, dtype=torch.bool)
        rest[sure] = False
        others = weights[rest]
        bounds = [
            (quantile * len(others) * float(others.std()) / (epsilon * float(weights.sum()))) ** 2
            for quantile in (z(1 - delta), z(1 - delta / 2))
        ]
        least = 0.25 * len(others)
        mean = sum(sizes) / len(sizes)
        assert 0.75 * max(least, bounds[0]) <= mean <= 1.3 * max(least, bounds[1]) + 1
        assert max(bounds) > least  # otherwise the bound was not tried


def test_the_sum_of_weights_is_within_epsilon_as_often_as_promised():
    epsilon, delta = 0.1, 0.1
    spec = f"vattention(heavy=0.02, sample=0.1, sink={SINK}, window={WINDOW}, epsilon={epsilon}, delta={delta})"
    scores, chosen = selections(spec, 150, spread=1.5)
    off, far = [], 0
    for selection in chosen:
        for head in range(2):
            slots, weights = selection.indices[0, head, 0], weights_of(selection)[0, head, 0]
            real = slots >= 0
            said = (scores[head][slots[real]] + weights[real].double()).exp().sum()
            off.append(float(said / scores[head].exp().sum()) - 1)
            far += abs(off[-1]) > epsilon
    assert far / len(off) <= delta + 0.05
    assert abs(sum(off) / len(off)) < 0.02
    assert max(map(abs, off)) > 0.001
