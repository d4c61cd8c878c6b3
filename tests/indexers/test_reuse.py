"""Layers that reuse another's choice: which they are, what they take over, and what is refused."""

from __future__ import annotations

import pytest
import torch

from topkit.contract import check_indexer
from topkit.contract.draw import RANDOM
from topkit.errors import InputError
from topkit.experiments.runs.cells import Cell
from topkit.experiments.study.kinds import family_of, kind_of
from topkit.indexers import Selection, Step, exact, keep, refine, reuse, sign
from topkit.indexers.budget import parse_budget
from topkit.indexers.spec import parse
from topkit.indexers.upstream import upstream_layers, without_source


def test_every_fourth_layer_selects_and_those_behind_it_read_it():
    assert [reuse(sign()).upstream_layer(n) for n in range(9)] == [
        None, 0, 0, 0, None, 4, 4, 4, None,
    ]  # fmt: skip
    listed = reuse(sign(), layers=(2, 5))
    assert [listed.upstream_layer(n) for n in range(8)] == [None, None, None, 2, 2, None, 5, 5]
    assert keep(listed, sink=1).upstream_layer(6) == 5
    assert [upstream_layers(recipe, 6) for recipe in (listed, keep(listed), sign())] == [
        [5],
        [5],
        [],
    ]


@pytest.mark.parametrize("spec", ["reuse(sign())", "keep(reuse(exact()), sink=2, window=1)"])
def test_layers_that_reuse_keep_the_laws(spec):
    check_indexer(spec, layer=1)


def reused(recipe, slots, k, layer=1, heads=(4, 2)):
    one = RANDOM(recipe, heads=heads, length=20, rows=1)
    step = Step(layer=layer, kv_heads=heads[1], inputs={"upstream": Selection(slots)})
    index = recipe.build(one.keys, step.given_to(recipe))
    return index, index.select(one.queries[:, :, -1:], k, step.given_to(recipe))


def test_a_layer_takes_the_choice_over_best_first_and_holds_nothing():
    slots = torch.tensor([[[[7, 3, 11, 0, -1]]] * 2])
    index, chosen = reused(reuse(sign(), every=2), slots, 3)
    assert chosen.indices.tolist() == [[[[7, 3, 11]]] * 2]
    assert (chosen.keys_scored, chosen.bytes_read, index.nbytes) == (0, 0, 0)
    assert reused(reuse(sign(), every=2), slots, 9)[1].indices.tolist() == [
        [[[7, 3, 11, 0, -1, -1, -1, -1, -1]]] * 2
    ]


def test_a_layer_that_selects_does_so_as_its_base():
    one = RANDOM(sign())
    base, whole = sign(), reuse(sign(), layers=(0, 3))
    for layer in (0, 3):
        step = Step(layer=layer, kv_heads=2)
        got, want = (
            recipe.build(one.keys, step.given_to(recipe)).select(
                one.queries[:, :, -1:], 5, step.given_to(recipe)
            )
            for recipe in (whole, base)
        )
        assert torch.equal(got.indices, want.indices)


def test_layers_of_other_heads_are_refused_by_name():
    with pytest.raises(InputError, match=r"reuse\(base=sign.*layer 1 has 4 query heads.* 3 lists"):
        reused(reuse(sign()), torch.zeros(1, 3, 1, 2, dtype=torch.long), 2)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("reuse(sign(), every=0)", "every must be a whole number of at least 1; got 0"),
        (
            "reuse(sign(), layers=(3, 1))",
            r"layers must be numbers of layers, ascending, .*; got \(3, 1\)",
        ),
        ("reuse(sign(), layers=(-1, 2))", "layers must be numbers of layers"),
        ("reuse(keep(reuse(sign())))", "reuses already"),
        ("reuse(sampled())", "would bias"),
        ("shared(reuse(sign()))", "has none; wrap it the other way round"),
    ],
)
def test_what_is_no_parameter_is_refused(text, said):
    with pytest.raises(InputError, match=said):
        parse(text)


def test_a_source_that_does_not_select_is_named():
    recipe = reuse(sign(), every=3)
    assert without_source(recipe, [0, 1, 3], [0, 1, 3], "X") == ""
    assert without_source(sign(), [4], [4], "X") == ""
    said = without_source(recipe, [1, 4], [0, 1, 4], "TinyModel")
    assert "reads in layer 4 what layer 3 selected" in said
    assert "layers that TinyModel selects in, [0, 1, 4]" in said


@pytest.mark.parametrize("above", [5, 6, -1])
def test_a_source_that_is_no_earlier_layer_is_refused(above):
    class odd(reuse):
        def upstream_layer(self, layer: int) -> int | None:
            return above

    with pytest.raises(InputError, match=rf"upstream_layer\(5\) must be an earlier .* got {above}"):
        upstream_layers(odd(sign()), 5)


def test_a_driver_that_offers_no_other_layer_is_named():
    step = Step(layer=1).given_to(reuse(sign()))
    index = reuse(sign()).build(torch.randn(1, 1, 4, 8), step)
    with pytest.raises(InputError, match="needs 'upstream'; this driver has none"):
        index.select(torch.randn(1, 1, 1, 8), 2, step)


def test_what_reuses_exact_scores_of_another_layer_is_no_oracle():
    for spec in ("reuse(exact())", "keep(reuse(exact()), sink=4)"):
        cell = Cell(parse(spec), parse_budget("16"))
        assert (kind_of(cell), family_of(cell)) == ("real", "layers")


def test_combinators_around_it_read_the_other_layer_too():
    assert refine(reuse(exact()), factor=2).traits().needs == {"cache", "upstream"}
