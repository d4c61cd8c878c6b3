"""Specs and budgets: text to values and back."""

from __future__ import annotations

import shlex

import pytest
from hypothesis import given
from hypothesis import strategies as st

from topkit.errors import InputError
from topkit.indexers import INDEXERS, degraded, exact, keep, quantized, refine, shared, sign, top_p
from topkit.indexers.budget import Budget, parse_budget, parse_budgets
from topkit.indexers.spec import parse, quoted, short


@pytest.mark.parametrize(
    ("spec", "indexer"),
    [
        ("exact", exact()),
        ("exact()", exact()),
        (" quantized:dtype=int4,hadamard=true ", quantized("int4", hadamard=True)),
        ("quantized(dtype='int4')", quantized("int4")),
        ("quantized(dtype=int4)", quantized("int4")),
        ("quantized(int4)", quantized("int4")),
        ("degraded:precision=0.6,fill=none", degraded(0.6, fill="none")),
        ("degraded(.5)", degraded(0.5)),
        ("streaming_llm(sink=2, window=None)", parse("streaming_llm:sink=2,window=null")),
        ("keep(refine(sign(), factor=4), sink=4)", keep(refine(sign(), 4), sink=4)),
        ("keep(base=sign, window=3)", keep(sign(), window=3)),
        ("shared:base=sign,per=layer", shared(sign(), per="layer")),
        ("top_p(mass=0.5)", top_p(mass=0.5)),
    ],
)
def test_both_forms_parse(spec, indexer):
    assert parse(spec) == indexer
    assert parse(repr(indexer)) == indexer == parse(short(indexer)) == parse(indexer)


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("quantised", "unknown indexer 'quantised'; did you mean 'quantized'"),
        ("nonsense_at_all", "unknown indexer .* known: degraded, exact"),
        ("quantized(dtyp='int4')", "no parameter 'dtyp'; did you mean 'dtype'"),
        ("quantized(dtype='int5')", "must be one of fp8_e4m3.* got 'int5'; did you mean 'int"),
        ("quantized(hadamard=3)", "hadamard must be true or false; got 3"),
        ("quantized(int4, dtype=int8)", "'dtype' is given twice"),
        ("sign(1)", "takes 0 parameters"),
        ("degraded()", "degraded: .*precision"),
        ("degraded(1.5)", "precision must be a number from 0 to 1; got 1.5"),
        ("degraded(0.5, miss='uniforn')", "did you mean 'uniform'"),
        ("quest(page_size=0)", "page_size must be a whole number of at least 1; got 0"),
        ("quest(page_size=True)", "whole number"),
        ("streaming_llm(sink=-1)", "sink must be a whole number of at least 0"),
        ("keep(sink=4)", "keep: .*base"),
        ("keep('sign')", "base must be an indexer such as sign"),
        ("keep(vattention())", "would bias the weighted sample"),
        ("shared(keep(sign()))", "reads a score for every key"),
        ("vattention(top=0)", "top must be above 0"),
        ("refine(sign(), factor=0.5)", "factor must be a whole number"),
        ("sign(", "cannot read the indexer"),
        ("", "cannot read the indexer"),
        ("3", "expected an indexer such as"),
        ("__import__('os').system('true')", "expected an indexer such as"),
        ("quest(page_size=1+1)", "cannot read '1 \\+ 1'"),
        ("quest(**{'page_size': 1})", "given twice|no parameter"),
        ("random(seed=3)", "random has no parameter 'seed'; it takes none"),
        ("degraded", r"precision has no default; write degraded\(precision=...\)"),
        (sign, r"write sign\(\)"),
        (3, "expected an indexer such as"),
    ],
)
def test_what_is_refused_says_why(spec, said):
    with pytest.raises(InputError, match=said):
        parse(spec)


def test_hints_are_one_shell_word():
    assert shlex.split(quoted(keep(sign(), sink=4))) == ["keep(sign(), sink=4)"]
    assert quoted("quantized:dtype=int4") == "quantized:dtype=int4"


def test_short_leaves_out_what_is_default():
    assert short(refine(sign())) == "refine(sign())"
    assert short(top_p(base=sign(), mass=0.5)) == "top_p(sign(), mass=0.5)"


def test_recipes_are_frozen_and_hashable():
    assert (
        len({parse(f"{n}(0.5)" if n == "degraded" else n) for n in ("exact", "sign", "degraded")})
        == 3
    )
    with pytest.raises(AttributeError):
        setattr(quantized(), "dtype", "int4")  # noqa: B010 (pyright sees the other form)
    for recipe in INDEXERS.values():
        assert getattr(recipe, "__dataclass_params__").frozen  # noqa: B009


@pytest.mark.parametrize(
    ("text", "at", "k"),
    [
        ("16", 4096, 16),
        (16, 10, 16),
        ("1%", 4096, 41),
        ("1%", 300, 3),
        ("0.1%", 100, 1),
        ("100%", 7, 7),
    ],
)
def test_budgets(text, at, k):
    assert parse_budget(text).at(at) == k
    assert parse_budget(str(parse_budget(text))) == parse_budget(text)


@pytest.mark.parametrize("bad", ["0", 0, -1, "x", "1.5", "0%", "101%", "", True, None, "1e3"])
def test_bad_budgets_are_refused(bad):
    with pytest.raises(InputError):
        parse_budget(bad)


def test_lists_of_budgets_keep_their_order_once_each():
    assert parse_budgets("16, 1%,16") == [Budget(16), Budget(1, percent=True)]
    assert parse_budgets([16, "1%"]) == parse_budgets("16,1%")
    with pytest.raises(InputError, match="no k was given"):
        parse_budgets([])


@given(st.integers(1, 10**6), st.integers(1, 10**7))
def test_per_cent_rounds_up_without_float_surprises(hundredths, context):
    hundredths = min(hundredths, 10_000)
    text = f"{hundredths // 100}.{hundredths % 100:02d}%"
    assert parse_budget(text).at(context) == max(1, -(-hundredths * context // 10_000))
