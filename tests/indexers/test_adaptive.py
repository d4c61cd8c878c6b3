"""Methods that say their own count: Twilight's pruning, Tactic's curve; and MISA's few heads."""

from __future__ import annotations

import pytest
import torch

from topkit.contract.draw import RANDOM
from topkit.errors import InputError
from topkit.indexers import exact, lightning, misa, sign, tactic, twilight
from topkit.indexers.spec import parse


def ask(recipe, k, **how):
    one = RANDOM(recipe, length=60, heads=(4, 2), **how)
    return one, one.ask(recipe, one.build(recipe), k)


def counts(selection):
    return (selection.indices >= 0).sum(-1)


def test_more_mass_takes_more_keys_and_k_is_the_cap():
    for make in (
        lambda mass: twilight(exact(), mass=mass, candidates=1.0),
        lambda mass: tactic(mass=mass, cluster_size=4),
    ):
        few, many, all_ = (counts(ask(make(mass), 60)[1]) for mass in (0.3, 0.9, 1.0))
        assert bool((few <= many).all() and (many <= all_).all())
        assert bool((few < many).any()) and int(few.min()) >= 1 and bool((all_ == 60).all())
        assert torch.equal(counts(ask(make(0.9), 5)[1]), many.clamp_max(5))


def test_base_proposes_a_share_of_what_is_seen_whatever_k_is():
    recipe = twilight(exact(), mass=1.0, candidates=0.1)
    for k in (2, 6, 40):
        assert counts(ask(recipe, k)[1]).unique().tolist() == [min(k, 6)]
    one, chosen = ask(recipe, 40, start=(0, 30))
    assert counts(chosen)[:, 0, 0].tolist() == [6, 3]
    spread = one.ask_at(recipe, one.build(recipe), 40, torch.tensor([39, 49, 59]))
    assert counts(spread)[:, 0].tolist() == [[4, 5, 6], [1, 2, 3]]


def test_twilight_is_within_its_base():
    base = sign()
    recipe = twilight(base, mass=0.5, candidates=0.3)
    one, chosen = ask(recipe, 60)
    proposal = one.ask(base, one.build(base), 18).indices
    inside = (chosen.indices[..., None] == proposal[..., None, :]).any(-1)
    assert bool((inside | (chosen.indices < 0)).all())
    index = one.build(recipe)
    assert index.nbytes > one.build(base).nbytes + 2 * 60 * 2 * 16 / 2


def test_misa_with_all_heads_is_lightning():
    for weights, dtype in (("reference", "fp32"), ("given", "fp8"), ("given", "fp32")):
        base = lightning(weights, dtype)
        recipes = [
            misa(weights, dtype),
            misa(weights, dtype, heads=4, block=7),
            misa(weights, dtype, heads=1, block=4, candidates=60),
        ]
        one = RANDOM(base, length=60, heads=(4, 2))
        want = one.ask(base, one.build(base), 9).indices
        for recipe in recipes:
            assert torch.equal(one.ask(recipe, one.build(recipe), 9).indices, want)


def test_misa_with_few_heads_departs_and_asks_again_among_candidates():
    base, one_head = lightning("given"), misa("given", heads=1, block=8)
    one = RANDOM(base, length=60, heads=(4, 2))
    want, few = (one.ask(r, one.build(r), 9).indices for r in (base, one_head))
    assert not torch.equal(want, few)
    again = misa("given", heads=1, block=8, candidates=20)
    chosen = one.ask(again, one.build(again), 9).indices
    first = one.ask(one_head, one.build(one_head), 20).indices
    assert bool((chosen[..., None] == first[..., None, :]).any(-1).all())
    assert counts(one.ask(again, one.build(again), 60)).unique().tolist() == [20]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("twilight(mass=1.2)", "mass must be a number from 0 to 1; got 1.2"),
        ("twilight(candidates=0.0)", "candidates must be above 0; got 0"),
        ("twilight(vattention())", "would bias"),
        ("tactic(mass=-0.1)", "mass must be a number from 0 to 1; got -0.1"),
        ("tactic(cluster_size=0)", "cluster_size must be a whole number of at least 1; got 0"),
        ("tactic(sample=0)", "sample must be a whole number of at least 1; got 0"),
        ("top_p(tactic())", "has none; wrap it the other way round"),
        ("misa(heads=0)", "heads must be a whole number of at least 1; got 0"),
        ("misa(block=0)", "block must be a whole number of at least 1; got 0"),
        ("misa(weights='nowhere')", "no weights at 'nowhere'"),
        ("tidaldecode(layers=())", "must name a layer that selects"),
        ("tidaldecode(layers=(3, 1))", "layers must be numbers of layers, ascending"),
        ("indexcache(pattern=SFF)", "letters F .full. and S .shared., F first, as FSSS; got 'SFF'"),
        ("indexcache(pattern='')", "pattern must be letters"),
        ("indexcache(tidaldecode())", "indexcache: tidaldecode.* reuses already"),
    ],
)
def test_what_is_no_parameter_is_refused(text, said):
    with pytest.raises(InputError, match=said):
        parse(text)


def test_layers_of_tidaldecode_and_indexcache():
    layers = [parse("tidaldecode(layers=(2, 5))").upstream_layer(n) for n in range(8)]
    assert layers == [None, None, None, 2, 2, None, 5, 5]
    layers = [parse("indexcache(sign())").upstream_layer(n) for n in range(6)]
    assert layers == [None, 0, 0, 0, None, 4]
    # GLM-5's: the first two, and then one of three.
    glm = [parse("indexcache(sign(), pattern=FFSSFSS)").upstream_layer(n) for n in range(7)]
    assert glm == [None, None, 1, 1, None, 4, 4]
