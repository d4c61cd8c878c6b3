"""The last step's list as candidates: when base proposes, and what is chosen in between."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from topkit.contract.draw import RANDOM
from topkit.errors import InputError
from topkit.indexers import exact, previous, quest, random, refine
from topkit.indexers.spec import parse


def stream(recipe: Any, length: int = 50) -> Any:
    return RANDOM(recipe, length=length, heads=(4, 2))


def scored(selection):
    return float(torch.as_tensor(selection.keys_scored).max())


def proposes(recipe, one, lengths, k=4):
    """At which of some lengths base scored the keys."""
    index = one.build(recipe, [lengths[0]])
    asked = []
    for length in lengths:
        if length > index.length:
            one.append(recipe, index, length)
        chosen = one.ask(recipe, index, k)
        asked.append(scored(chosen) > 3 * recipe.factor * k)
    return asked


def test_base_proposes_after_every_few_keys():
    recipe = previous(exact(), every=3)
    assert proposes(recipe, stream(recipe), range(40, 48)) == [
        True, False, False, True, False, False, True, False,
    ]  # fmt: skip
    assert proposes(recipe, stream(recipe), [40, 45, 46]) == [True, True, False]


def test_between_proposals_it_is_the_best_of_the_last_list_and_what_came_since():
    recipe = previous(random(), every=100, factor=2)
    one = stream(recipe)
    index = one.build(recipe, [30])
    one.ask(recipe, index, 4)
    for before, length in ((30, 31), (31, 34), (34, 35)):
        last = index.last[4].slots
        one.append(recipe, index, length)
        chosen = one.ask(recipe, index, 4).indices
        scores = one.queries[:, :, length - 1 :] @ one.keys.repeat_interleave(2, 1).mT
        for row, head in ((0, 0), (0, 3), (1, 2)):
            among = {*last[row, head, 0].tolist(), *range(before, length)}
            ranked = sorted(among, key=lambda s: (-float(scores[row, head, 0, s]), s))
            assert chosen[row, head, 0].tolist() == ranked[:4]
            assert index.last[4].slots[row, head, 0].tolist() == ranked[:8]


def test_behind_a_cut_and_for_a_new_budget_base_proposes():
    recipe = previous(exact(), every=100)
    one = stream(recipe)
    index = one.build(recipe, [40])
    for length, k, anew in ((40, 4, True), (41, 4, False), (41, 5, True), (42, 5, False)):
        if length > index.length:
            one.append(recipe, index, length)
        assert (scored(one.ask(recipe, index, k)) > 30) == anew
    one.truncate(recipe, index, 41)
    assert scored(one.ask(recipe, index, 5)) > 30


def test_budgets_together_are_as_apart():
    recipe = previous(quest(page_size=4), every=3)
    one = stream(recipe)
    apart = {}
    for k in (3, 7):
        index = one.build(recipe, [40])
        apart[k] = []
        for length in range(41, 50):
            one.append(recipe, index, length)
            apart[k].append(one.ask(recipe, index, k).indices)
    index = one.build(recipe, [40])
    for number, length in enumerate(range(41, 50)):
        one.append(recipe, index, length)
        last = slice(length - 1, length)
        step = one.step(recipe, last, length)
        for k, chosen in index.select_many(one.queries[:, :, last], [3, 7], step).items():
            assert torch.equal(chosen.indices, apart[k][number])


def test_asked_anew_each_time_it_refines():
    recipe, base = previous(quest(page_size=4), every=1, factor=3), refine(quest(page_size=4), 3)
    one = stream(recipe)
    index, other = one.build(recipe, [40]), one.build(base, [40])
    for length in (41, 42, 43):
        one.append(recipe, index, length)
        one.append(base, other, length)
        got, want = one.ask(recipe, index, 5), one.ask(base, other, 5)
        assert torch.equal(got.indices, want.indices)
        assert (got.bytes_read == want.bytes_read).all()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("previous(sign(), every=0)", "every must be a whole number of at least 1; got 0"),
        ("previous(sign(), factor=0)", "factor must be a whole number of at least 1; got 0"),
        ("previous(vattention())", "would bias"),
        ("shared(previous(sign()))", "has none; wrap it the other way round"),
    ],
)
def test_what_is_no_parameter_is_refused(text, said):
    with pytest.raises(InputError, match=said):
        parse(text)


def test_several_queries_at_once_are_refused():
    for recipe in (previous(exact()), parse("h2o")):
        one = stream(recipe)
        with pytest.raises(InputError, match="answers one query at a time; got 3"):
            one.ask(recipe, one.build(recipe), 4, count=3)
