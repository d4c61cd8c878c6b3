"""What a recipe says of itself, and how a recipe of 0.1 says it."""

from __future__ import annotations

import copy
import pickle
import warnings
from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch

from topkit.contract import check_indexer
from topkit.indexers import (
    Cache,
    Combinator,
    Indexer,
    Step,
    Traits,
    exact,
    faiss_ivf,
    keep,
    lightning,
    quantized,
    quest,
    refine,
    sampled,
    shared,
    sign,
    streaming_llm,
    top_p,
)
from topkit.indexers.traits import FLAGS


def test_each_recipe_says_its_own():
    assert Indexer().traits() == Traits()
    assert quest().traits() == Traits(
        needs=frozenset({"cache"}), causal_codes=False, fixed=True, score_all=True
    )
    assert faiss_ivf().traits() == Traits(
        exhaustive=False, may_come_short=True, drifts=True, host=True
    )
    assert streaming_llm().traits() == Traits(fixed=True)
    bounded = Traits(exhaustive=False, may_come_short=True, fixed=True)
    assert streaming_llm(window=3).traits() == bounded
    given = lightning(weights="given", dtype="fp8").traits()
    assert given.fixed and given.needs == {"index_queries", "index_keys", "index_weights"}
    assert not lightning().traits().fixed
    assert lightning().needs >= {"hidden", "rope"}


def test_a_combinator_takes_over_the_laws_of_base_and_adds_its_own():
    base = quest().traits()
    assert keep(quest()).traits() == replace(base, score_all=False)
    assert refine(sign()).traits() == Traits(needs=frozenset({"cache"}), fixed=True)
    assert top_p(quest()).traits().causal_codes is False
    assert top_p(quest()).traits().exhaustive is False
    assert sampled(keep(faiss_ivf())).traits().drifts
    for one in (shared, keep, refine, top_p, sampled):
        assert one(quantized()).traits().fixed, "what base's index does it does at fixed shapes too"
        assert one(quantized("nvfp4", center=True)).traits().fixed
        assert not one(lightning()).traits().fixed
    assert not keep(faiss_ivf()).traits().fixed


def test_class_flags_of_0_1_still_count_and_one_line_says_what_to_write():
    with pytest.warns(FutureWarning) as caught:

        @dataclass(frozen=True)
        class mine(quest):
            late: bool = True
            drifts: ClassVar[bool] = True

            @property
            def may_come_short(self):
                return self.late

    (warning,) = caught
    assert str(warning.message) == (
        "mine has class flags, as in topkit 0.1; write instead: "
        "def traits(self): return replace(super().traits(), may_come_short=..., drifts=True)"
    )
    assert warning.filename == __file__
    assert mine().traits() == replace(quest().traits(), drifts=True, may_come_short=True)
    assert mine(late=False).traits() == replace(quest().traits(), drifts=True)
    assert keep(mine()).traits().drifts, "a combinator sees them too"
    assert copy.copy(mine()).traits() == mine().traits()


def test_class_flags_of_a_mixin_count_like_those_of_the_class():
    class Late:
        drifts = True
        causal_codes = False

    with pytest.warns(FutureWarning, match="drifts=True, causal_codes=False"):

        @dataclass(frozen=True)
        class mine(Late, sign):
            pass

    with warnings.catch_warnings():
        warnings.simplefilter("error")

        @dataclass(frozen=True)
        class settled(mine):
            def traits(self):
                return replace(super().traits(), drifts=False)

        @dataclass(frozen=True)
        class behind(sign, Late):
            pass

    late = replace(sign().traits(), drifts=True, causal_codes=False)
    assert mine().traits() == late
    assert settled().traits() == replace(late, drifts=False)
    assert behind().traits() == sign().traits(), "as Python looks names up"


@pytest.mark.parametrize("name", FLAGS)
def test_a_flag_of_another_recipe_is_read_as_in_0_1(name):
    with pytest.warns(FutureWarning):

        class mine(Indexer):
            base = quest()

            @property
            def drifts(self):
                return self.base.drifts

    with pytest.warns(FutureWarning, match=f"recipe.{name} is now recipe.traits"):
        assert getattr(faiss_ivf(), name) == getattr(faiss_ivf().traits(), name)
    with pytest.warns(FutureWarning, match=r"recipe\.drifts"):
        assert mine().traits() == Traits()
    with pytest.raises(AttributeError, match="'quest' object has no attribute 'page'"):
        _ = quest().page  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", FLAGS)
def test_every_flag_is_read(name):
    other = not getattr(Traits(), name)
    with pytest.warns(FutureWarning, match=f"{name}={other}"):
        recipe = type("mine", (Indexer,), {name: other})
    assert recipe().traits() == replace(Traits(), **{name: other})


def test_a_class_below_one_with_flags_is_not_warned_about_again_and_may_overrule_it():
    with pytest.warns(FutureWarning):

        class old(exact):
            may_come_short: ClassVar[bool] = True

    with warnings.catch_warnings():
        warnings.simplefilter("error")

        class plain(old):
            pass

        class new(old):
            def traits(self):
                return replace(super().traits(), may_come_short=False, drifts=True)

    assert plain().traits() == replace(exact().traits(), may_come_short=True)
    assert new().traits() == replace(exact().traits(), drifts=True)


def test_needs_at_class_level_is_read_without_a_word():
    with warnings.catch_warnings():
        warnings.simplefilter("error")

        class mine(Indexer):
            needs: ClassVar[frozenset[str]] = frozenset({"hidden"})

        class reads(Combinator):
            reads: ClassVar[frozenset[str]] = frozenset({"cache"})

        class more(quest):
            @property
            def needs(self):
                return super().needs | {"rope"}

    assert more().needs == {"cache", "rope"}
    assert mine().needs == {"hidden"}
    assert reads(mine()).needs == reads(mine()).traits().needs == {"hidden", "cache"}
    hidden = torch.zeros(1, 1, 1)
    assert Step(inputs={"hidden": hidden, "values": hidden}).given_to(mine()).inputs.keys() == {
        "hidden"
    }


@pytest.mark.parametrize("says", [False, True])
def test_the_laws_hold_a_recipe_with_class_flags_to_what_they_say(says):
    flags = {"window": 3, "exhaustive": says, "may_come_short": True}
    with pytest.warns(FutureWarning):
        recipe = dataclass(frozen=True)(type("mine", (streaming_llm,), flags))
    if says:
        with pytest.raises(AssertionError, match="breaks the law 'exhaustive'"):
            check_indexer(recipe(window=3))
    else:
        check_indexer(recipe(window=3))


def test_traits_are_a_value():
    assert hash(Traits()) == hash(Traits(needs=frozenset()))
    assert pickle.loads(pickle.dumps(keep(sign()))).traits() == keep(sign()).traits()


def test_a_choice_of_ones_own_is_not_made_by_the_parents_kernels():
    @dataclass(frozen=True)
    class newest(keep):
        def choose(self, index, queries, k, step):
            return super().choose(index, queries, k, step).cut(1)

    @dataclass(frozen=True)
    class longest(quest):
        def score(self, queries, pages, step):
            return super().score(queries.abs(), pages, step)

        def summarise(self, keys, real):
            return {name: 2 * page for name, page in super().summarise(keys, real).items()}

    assert not newest(sign()).traits().fixed and keep(sign()).traits().fixed
    queries, keys = torch.randn(1, 2, 1, 8), torch.randn(1, 1, 20, 8)
    step = Step(inputs={"cache": Cache(keys[:, :, :18])})
    index = longest(4).build(keys[:, :, :17], step)
    index.append(keys[:, :, 17:18], step)
    places = {"at": torch.tensor([18]), "stop": torch.tensor([[19]]), "room": 20}
    step = Step(inputs={"cache": Cache(keys)}, **places)
    index.append(keys[:, :, 18:19], step)
    want = longest(4).build(keys[:, :, :19], Step())
    ours = index.visible_scores(queries, step)[..., :19]
    assert torch.equal(ours, want.score(queries, Step()))
