"""The estimate of vAttention, arXiv 2510.05688, section 4: best keys as they are, a uniform sample for the others."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from plainly import LENGTH, WIDTH, arrays, best, stream
from topkit.contract.draw import RANDOM
from topkit.indexers.spec import parse


def parted(selection, row=0, query=0):
    """Of each head, the keys that stand for themselves, and the drawn ones by their log-weight."""
    assert selection.log_weights is not None
    found = list[tuple[list[int], dict[int, float]]]()
    for slots, weights in zip(selection.indices[row], selection.log_weights[row], strict=True):
        listed = zip(slots[query].tolist(), weights[query].tolist(), strict=True)
        pairs = [(slot, weight) for slot, weight in listed if slot >= 0]
        assert len({slot for slot, _ in pairs}) == len(pairs)
        sure = [slot for slot, weight in pairs if weight == 0]
        found.append((sure, {slot: weight for slot, weight in pairs if weight != 0}))
    return found


def require(sure, drawn, scores, top, k):
    """The best of the scores {slot: score} are there, and as many of the others as k leaves, weighed alike."""
    assert len(sure) + len(drawn) == min(k, len(scores))
    if k >= len(scores):
        assert not drawn
        return
    least = math.floor(top * k + 1e-9)
    assert least <= len(sure) <= math.ceil(top * k - 1e-9)
    assert sure == best(scores, len(sure))
    others = set(scores) - set(sure)
    assert set(drawn) <= others
    for weight in drawn.values():
        assert weight == pytest.approx(math.log(len(others) / len(drawn)), rel=1e-6)


def products(query, keys, first=0):
    return {first + slot: float(key @ query) for slot, key in enumerate(keys[first:])}


@pytest.mark.parametrize("top", [0.1, 0.25, 0.5, 0.8, 1.0])
@pytest.mark.parametrize("k", [2, 7, 20, 36, 37, 90])
@pytest.mark.parametrize("heads", [(4, 2), (3, 1)])
def test_the_best_and_a_sample_of_the_others(top, k, heads):
    recipe = parse(f"sampled(top={top})")
    one = RANDOM(recipe, length=37, rows=1, heads=heads, seed=k)
    queries, keys = arrays(one)
    found = parted(one.ask(recipe, one.build(recipe, [20, 37]), k))
    assert len(found) == heads[0]
    for head, (sure, drawn) in enumerate(found):
        require(sure, drawn, products(queries[head, -1], keys[head]), top, k)


def test_equal_scores_come_by_the_lowest_slot():
    recipe, tied = parse("sampled(top=0.4)"), 0
    for seed in range(3):
        one = RANDOM(recipe, length=33, rows=1, seed=seed, whole=True)
        queries, keys = arrays(one)
        found = parted(one.ask(recipe, one.build(recipe), 15))
        for head, (sure, drawn) in enumerate(found):
            scores = products(queries[head, -1], keys[head])
            require(sure, drawn, scores, 0.4, 15)
            first, second = best(scores, 7)[-2:]
            tied += scores[first] == scores[second]
    assert tied  # otherwise no two tied at the cut


def test_the_best_are_those_of_the_base():
    """Of `keep`, the first and the newest keys before any other; of `sign`, by the signs of keys."""
    recipe = parse("sampled(keep(sign(), sink=2, window=3), top=0.5)")
    one = stream(recipe, 2)
    queries, keys = arrays(one)
    ends = {0, 1, LENGTH - 3, LENGTH - 2, LENGTH - 1}
    for head, (sure, drawn) in enumerate(parted(one.ask(recipe, one.build(recipe), 16))):
        signs = np.where(keys[head] >= 0, 1, -1) @ queries[head, -1]
        inner = [slot for slot in range(LENGTH) if slot not in ends]
        assert set(sure) == ends | set(best(signs, 3, inner))
        assert len(drawn) == 8 and not set(drawn) & set(sure)
        assert list(drawn.values()) == pytest.approx([math.log(32 / 8)] * 8)


def test_no_more_is_drawn_than_is_seen():
    recipe, starts = parse("sampled(top=0.5)"), (0, 5, 25)
    one = RANDOM(recipe, length=31, start=starts, seed=1)
    selection = one.ask(recipe, one.build(recipe), 12, 3)
    for row, first in enumerate(starts):
        queries, keys = one.queries[row].double().numpy(), one.keys[row].double().numpy()
        for query, stop in enumerate((29, 30, 31)):
            for head, (sure, drawn) in enumerate(parted(selection, row, query)):
                seen = products(queries[head, stop - 1], keys[head // 2, :stop], first)
                require(sure, drawn, seen, 0.5, 12)


def test_each_token_draws_anew_as_keys_come():
    recipe = parse("sampled(top=0.5)")
    one = stream(recipe, 3)
    queries, keys = arrays(one)
    index, samples = one.build(recipe, [1]), set[frozenset[int]]()
    for length in range(2, LENGTH + 1):
        one.append(recipe, index, length)
        for head, (sure, drawn) in enumerate(parted(one.ask(recipe, index, 6))):
            scores = products(queries[head, length - 1], keys[head, :length])
            require(sure, drawn, scores, 0.5, 6)
            samples.add(frozenset(drawn))
    assert len(samples) > 4 * (LENGTH - 6) * 0.9


def test_every_other_key_is_drawn_as_often_and_the_sum_of_weights_is_met():
    recipe, tries = parse("sampled(top=0.25)"), 100
    one = stream(recipe, 4)
    queries, keys = arrays(one)
    index = one.build(recipe)
    counts, sums, unweighed = np.zeros((4, LENGTH)), np.zeros((4, tries)), np.zeros((4, tries))
    attention = np.exp(np.einsum("htd,hd->ht", keys, queries[:, -1]) * WIDTH**-0.5)
    for seed in range(tries):
        selection = replace(one, seed=seed).ask(recipe, index, 12)
        for head, (sure, drawn) in enumerate(parted(selection)):
            counts[head, list(drawn)] += 1
            best_ones = sum(attention[head, slot] for slot in sure)
            sums[head, seed] = best_ones + sum(
                attention[head, slot] * math.exp(weight) for slot, weight in drawn.items()
            )
            unweighed[head, seed] = best_ones + sum(attention[head, slot] for slot in drawn)
    share = 9 / (LENGTH - 3)  # of the 37 others 9 are drawn
    for head, whole in enumerate(attention.sum(1)):
        others = counts[head][counts[head] > 0]
        assert len(others) == LENGTH - 3
        assert np.abs(others - share * tries).max() < 4.5 * (tries * share * (1 - share)) ** 0.5
        assert abs(sums[head].mean() - whole) < 4.5 * sums[head].std() / tries**0.5
        assert abs(unweighed[head].mean() - whole) > 20 * unweighed[head].std() / tries**0.5
