"""TidalDecode, arXiv 2410.05076, section 3, and IndexCache, arXiv 2603.12201, section 3: layers that reuse."""

from __future__ import annotations

from dataclasses import replace

import pytest

from plainly import arrays, best, chosen, stream
from topkit.indexers import Selection
from topkit.indexers.spec import parse


def driven(recipe, layers, k):
    """What each layer chooses, driven as a model would: a layer that reuses reads what it names."""
    got, exact, selections = [], [], {}
    for layer in range(layers):
        one = replace(stream(recipe, layer), layer=layer)
        index = one.build(recipe)
        source = recipe.upstream_layer(layer)
        last = slice(one.length - 1, one.length)
        step = one.step(recipe, last, one.length)
        if "upstream" in recipe.needs:
            inputs = {name: x for name, x in step.inputs.items() if name != "upstream"}
            if source is not None:
                inputs["upstream"] = Selection(selections[source].indices)
            step = replace(step, inputs=inputs)
        selections[layer] = index.select(one.queries[:, :, last], k, step)
        got.append(selections[layer].indices[0, :, 0].tolist())
        queries, keys = arrays(one)
        exact.append([best(keys[h] @ queries[h, -1], k) for h in range(4)])
    return got, exact


@pytest.mark.parametrize("chosen_in", [(2, 13), (0, 5)])
def test_tidaldecode_reuses_the_last_layer_that_selected(chosen_in):
    first, second = chosen_in
    got, exact = driven(parse(f"tidaldecode(layers=({first}, {second}))"), 16, 6)
    for layer in range(16):
        if layer <= first:
            source = layer  # before the first each chooses for itself
        else:
            source = first if layer < second else second
        assert got[layer] == exact[source], f"layer {layer}"


@pytest.mark.parametrize("pattern", ["FSSS", "FFS", "F", "FSFFSSSS"])
def test_indexcache_reuses_the_full_layer_before(pattern):
    got, exact = driven(parse(f"indexcache(exact(), pattern='{pattern}')"), 10, 6)
    source = 0
    for layer in range(10):
        if pattern[layer % len(pattern)] == "F":
            source = layer
        assert got[layer] == exact[source], f"layer {layer}"


def test_without_reuse_they_are_their_base():
    recipe = parse("indexcache(exact(), pattern='F')")
    one = stream(recipe, 3)
    queries, keys = arrays(one)
    got = chosen(one, recipe, one.build(recipe), 5)
    assert got == [best(keys[h] @ queries[h, -1], 5) for h in range(4)]
