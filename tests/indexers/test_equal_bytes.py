"""Budgets of bytes: what they read as, and which parameter each recipe is given."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import pytest

from topkit.errors import InputError
from topkit.indexers import Stateless
from topkit.indexers.equal_bytes import (
    NEAR,
    ByteBudget,
    at_equal_bytes,
    parse_byte_budget,
    parse_byte_budgets,
)
from topkit.indexers.spec import parse
from topkit.indexers.stated_cost import Shape

# SmolLM2's, in bfloat16: 384 bytes of keys a token.
SHAPE = Shape(Hq=9, Hk=3, D=64, Dv=64, T=4096, k=16, e=2)


@pytest.mark.parametrize(
    ("text", "budget"),
    [
        ("bytes=0.06", ByteBudget(0.06, share=True)),
        (" bytes = 64 ", ByteBudget(64)),
        ("bytes=.5", ByteBudget(0.5, share=True)),
        ("bytes=1", ByteBudget(1)),
        ("bytes=1e-2", ByteBudget(0.01, share=True)),
        ({"bytes": 64}, ByteBudget(64)),
        ({"bytes": 0.06}, ByteBudget(0.06, share=True)),
        (ByteBudget(3), ByteBudget(3)),
    ],
)
def test_the_grammar_of_a_budget(text, budget):
    assert parse_byte_budget(text) == budget
    assert parse_byte_budget(str(budget)) == budget


@pytest.mark.parametrize(
    ("text", "amounts"),
    [
        (None, []),
        ("bytes=0.06", [0.06]),
        ("bytes=0.06, bytes=64,bytes=0.06", [0.06, 64]),
        (["bytes=0.06", {"bytes": 64}], [0.06, 64]),
        ({"bytes": 3}, [3]),
        (ByteBudget(3), [3]),
    ],
)
def test_several_budgets(text, amounts):
    assert [one.amount for one in parse_byte_budgets(text)] == amounts


@pytest.mark.parametrize(
    "text",
    ["", "64", "bytes", "bytes=", "bytes=0", "bytes=-1", "bytes=x", "bytes=6%", "byte=6", 64, True,
     "bytes=1e999", "bytes=nan", {"bytes": 1, "k": 2}, {}, ["bytes=3"]],
)  # fmt: skip
def test_what_is_no_budget_of_bytes_is_refused(text):
    for read in (parse_byte_budget, lambda x: parse_byte_budgets([x])):
        with pytest.raises(InputError, match=r"budget must be bytes=0.06 .* or bytes=64"):
            read(text)


@pytest.mark.parametrize(
    ("spec", "budget", "made"),
    [
        # 2 keys a page are 1/16 of the keys' bytes at pages of 32.
        ("quest", "bytes=0.0625", "quest:page_size=32"),
        ("quest", "bytes=24", "quest:page_size=32"),
        ("keep(quest(), sink=4)", "bytes=0.0625", "keep(quest(page_size=32), sink=4)"),
        # 1/16, and 3 query heads read 16 * factor keys of 4,096.
        ("refine(sign())", "bytes=0.25", "refine(sign(), factor=16)"),
        # The outermost parameter first; where it cannot do, the one inside it.
        ("refine(quest(page_size=64), factor=4)", "bytes=0.0625", "refine(quest(page_size=64), factor=3)"),
        ("refine(quest(page_size=4), factor=2)", "bytes=0.0625", "refine(quest(page_size=51), factor=2)"),
        ("quantized", "bytes=0.5", "quantized:dtype=int8"),
        ("quantized:dtype=fp8_e4m3", "bytes=0.5", "quantized:dtype=fp8_e4m3"),
        ("quantized:scale=pow2", "bytes=0.25", "quantized:dtype=int4,scale=pow2"),
        ("sign", "bytes=0.0625", "sign"),
        # Each of 9 query heads reads 64 centroids, and nprobe of 64 lists: 36 (1 + nprobe) bytes a token.
        ("faiss_ivf", "bytes=1000", "faiss_ivf:nlist=64,nprobe=27"),
    ],
)  # fmt: skip
def test_each_recipe_reads_the_budget(spec, budget, made):
    budget = parse_byte_budget(budget)
    chosen = at_equal_bytes(parse(spec), budget, SHAPE)
    assert chosen.recipe == parse(made) and not chosen.why
    assert chosen.read == pytest.approx(budget.at(SHAPE), rel=NEAR)


@pytest.mark.parametrize("spec", ["quest", "moba", "refine(sign(), factor=4)", "faiss_hnsw"])
def test_the_nearest_of_all_values_is_chosen(spec):
    recipe: Any = parse(spec)
    budget = ByteBudget(0.3, share=True)
    chosen = at_equal_bytes(recipe, budget, SHAPE)
    (name,) = recipe.tuned

    def off(value: int) -> float:
        one = replace(recipe, **{name: value})
        return abs(math.log(one.costs(SHAPE).read / SHAPE.T / budget.at(SHAPE)))

    best = min(range(1, 1025), key=off)
    assert off(getattr(chosen.recipe, name)) == off(best)


@pytest.mark.parametrize(
    ("spec", "why", "over"),
    [
        ("exact", "is an oracle, and stays as it is", False),
        ("random", "is a control, and stays as it is", False),
        ("streaming_llm", "is a window, and stays as it is", False),
        ("native", "does not state what it reads, and stays as it is", False),
        ("sign", "reads 24 bytes a token, of 96", False),
        ("top_p(exact())", "reads 384 bytes a token, of 96", True),
        ("lightning", "reads 256 bytes a token, of 96", True),
    ],
)
def test_what_cannot_be_met_is_said(spec, why, over):
    chosen = at_equal_bytes(parse(spec), ByteBudget(0.25, share=True), SHAPE)
    assert (chosen.recipe, chosen.why, chosen.over) == (parse(spec), why, over)


@dataclass(frozen=True)
class reads_nothing(Stateless):
    """Is no control, and reads nothing."""

    def costs(self, shape):
        return parse("random").costs(shape)


def test_what_reads_nothing_does_not_meet_a_budget():
    chosen = at_equal_bytes(reads_nothing(), ByteBudget(64), SHAPE)
    assert chosen.why == "reads 0 bytes a token, of 64" and not chosen.over


@pytest.mark.parametrize(
    ("spec", "share", "made"),
    [
        # int2 reads 5/32 of bfloat16's, int4 9/32: nearer to 1/4 in ratio, but above it.
        ("quantized", 0.25, "quantized:dtype=int2"),
        ("top_p(quantized())", 0.25, "top_p(quantized:dtype=int2)"),
    ],
)
def test_what_cannot_meet_a_budget_reads_less_where_it_can(spec, share, made):
    budget = ByteBudget(share, share=True)
    chosen = at_equal_bytes(parse(spec), budget, SHAPE)
    assert (
        not chosen.over and chosen.read is not None and chosen.read <= (1 + NEAR) * budget.at(SHAPE)
    )
    assert (chosen.recipe, bool(chosen.why)) == (parse(made), True)
