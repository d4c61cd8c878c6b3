"""Layers that reuse what an earlier one chose: TidalDecode, arXiv 2410.05076; IndexCache, arXiv 2603.12201."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from plainly import arrays, best, lists
from topkit.contract.draw import RANDOM
from topkit.indexers import Selection
from topkit.indexers.spec import parse


def source_of(layer, every=4, layers=()):
    """The layer whose choice a layer reads: its own, or that of the last one before it that selects."""
    source = None
    for earlier in range(layer + 1):
        if earlier in layers if layers else earlier % every == 0:
            source = earlier
    return layer if source is None else source


class Model:
    """Layers with queries and keys of their own, which hand on what each of them selected."""

    def __init__(self, recipe, layers, heads, begin, whole=False):
        self.recipe = recipe
        self.layers = [
            replace(
                RANDOM(recipe, length=24, rows=1, heads=heads[n % len(heads)], seed=n, whole=whole),
                layer=n,
            )
            for n in range(layers)
        ]
        self.indexes = [one.build(recipe, [begin]) for one in self.layers]

    def append(self, length):
        for one, index in zip(self.layers, self.indexes, strict=True):
            one.append(self.recipe, index, length)

    def ask(self, ks, count=1):
        """What the last `count` tokens select in each layer, layer n at a budget of ks[n]."""
        selections = list[Selection]()
        for n, (one, index) in enumerate(zip(self.layers, self.indexes, strict=True)):
            tokens = slice(index.length - count, index.length)
            step = one.step(self.recipe, tokens, index.length)
            source = self.recipe.upstream_layer(n)
            inputs = {name: x for name, x in step.inputs.items() if name != "upstream"}
            if source is not None:
                inputs["upstream"] = Selection(selections[source].indices)
            step = replace(step, inputs=inputs)
            selections.append(index.select(one.queries[:, :, tokens], ks[n % len(ks)], step))
        return selections

    def exact(self, layer, head, length, k):
        queries, keys = arrays(self.layers[layer])
        return best(keys[head, :length] @ queries[head, length - 1], k)


RULES = [{"every": 4}, {"every": 1}, {"every": 3}, {"layers": (2, 5)}, {"layers": (0, 1, 6)}]


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_a_layer_reads_the_last_that_selected_token_by_token(rule):
    spec = ", ".join(f"{name}={value}" for name, value in rule.items())
    model = Model(parse(f"reuse(exact(), {spec})"), 9, [(4, 2)], begin=6)
    for length in range(6, 12):
        if length > 6:
            model.append(length)
        for layer, selection in enumerate(model.ask([7])):
            source = source_of(layer, **rule)
            assert lists(selection) == [model.exact(source, h, length, 7) for h in range(4)]


def test_only_layers_that_select_hold_an_index():
    model = Model(parse("reuse(sign(), layers=(1, 3))"), 6, [(4, 2)], begin=24)
    held = [index.nbytes > 0 for index in model.indexes]
    assert held == [source_of(layer, layers=(1, 3)) == layer for layer in range(6)]


def test_several_tokens_at_once_and_ties():
    model = Model(parse("reuse(exact(), every=2)"), 4, [(3, 1)], begin=24, whole=True)
    for layer, selection in enumerate(model.ask([9], count=3)):
        for query in range(3):
            got = selection.indices[0, :, query].tolist()
            assert got == [model.exact(layer // 2 * 2, h, 22 + query, 9) for h in range(3)]


def test_a_smaller_budget_reads_the_best_of_the_list_and_a_larger_one_no_more():
    model = Model(parse("reuse(exact(), every=3)"), 3, [(4, 2)], begin=24)
    first, smaller, larger = model.ask([8, 3, 20])
    for head in range(4):
        best_ones = model.exact(0, head, 24, 8)
        assert lists(first)[head] == best_ones
        assert lists(smaller)[head] == best_ones[:3]
        assert lists(larger)[head] == best_ones


def test_one_list_a_group_is_read_as_one():
    model = Model(parse("reuse(shared(exact()), every=2)"), 2, [(6, 2)], begin=24)
    queries, keys = arrays(model.layers[0])
    for selection in model.ask([5]):
        for group, slots in enumerate(lists(selection)):
            scores = [keys[head] @ queries[head, -1] for head in range(3 * group, 3 * group + 3)]
            assert slots == best(np.mean(scores, 0), 5)


def test_one_list_a_layer_goes_to_layers_of_any_heads():
    model = Model(parse("reuse(shared(exact(), per='layer'), every=3)"), 3, [(4, 2), (6, 3)], 24)
    queries, keys = arrays(model.layers[0])
    scores = [keys[head] @ queries[head, -1] for head in range(4)]
    for selection in model.ask([5]):
        assert lists(selection) == [best(np.mean(scores, 0), 5)]


def test_other_layers_choose_otherwise():
    model = Model(parse("reuse(exact(), every=4)"), 9, [(4, 2)], begin=24)
    for layer, selection in enumerate(model.ask([7])):
        for rule in RULES[2:]:
            if source_of(layer, **rule) != source_of(layer):
                wrong = model.exact(source_of(layer, **rule), 0, 24, 7)
                assert lists(selection)[0] != wrong
