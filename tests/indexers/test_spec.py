"""Specs and budgets: text to values and back."""

from __future__ import annotations

import shlex
from typing import Any

import numpy as np
import pytest
import torch
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
        ("degraded:0.5,miss='boundary'", degraded(0.5, miss="boundary")),
        ("keep:base=refine(sign(), factor=2),sink=4", keep(refine(sign(), 2), sink=4)),
        ("sign:", sign()),
    ],
)
def test_both_forms_parse(spec, indexer):
    assert parse(spec) == indexer
    assert parse(repr(indexer)) == indexer == parse(short(indexer)) == parse(indexer)


HUGE_PARAMETERS = (
    "quest(page_size",
    "streaming_llm(sink",
    "streaming_llm(window",
    "keep(sign(), window",
    "refine(sign(), factor",
    "faiss_ivf(nlist",
)


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("quest(page_size={[]:1})", r"whole number .* got '\{\[\]:1\}'"),
        ("quest:page_size={[]:1}", r"whole number .* got '\{\[\]:1\}'"),
        ("quest:page_size=", "whole number .* got ''"),
        ("quest:page_size=4,page_size=8", "'page_size' is given twice"),
        pytest.param(f"quest(page_size={'-' * 50_000}1)", r"'quest\(.*too deeply", id="deep"),
        pytest.param(f"quest:page_size={'-' * 50_000}1", "'quest:.*too deeply", id="deep, bare"),
        ("lightning:weights=/a/b.safetensors", "no weights at '/a/b.safetensors'"),
        ("lightning:weights=../b,dtype=fp8", "no weights at '../b'"),
        ("lightning:weights='/a,b',dtype=fp8", "no weights at '/a,b'"),
        ("lightning(weights='/a/**')", r"no weights at '/a/\*\*'"),
        ("lightning(weights='*')", r"no weights at '\*'"),
        ("quantised", "unknown indexer 'quantised'; did you mean 'quantized'"),
        ("nonsense_at_all", "unknown indexer .* known: .*degraded, .*exact"),
        ("quantized(dtyp='int4')", "no parameter 'dtyp'; did you mean 'dtype'"),
        ("quantized(dtype='int5')", "must be one of int2.* got 'int5'; did you mean 'int"),
        ("quantized(hadamard=3)", "hadamard must be true or false; got 3"),
        ("quantized(int4, dtype=int8)", "'dtype' is given twice"),
        ("sign(1)", "takes 0 parameters"),
        ("degraded()", "degraded: .*precision"),
        ("degraded(1.5)", "precision must be a number from 0 to 1; got 1.5"),
        ("degraded(0.5, miss='uniforn')", "did you mean 'uniform'"),
        ("quest(page_size=0)", "page_size must be a whole number of at least 1; got 0"),
        ("quest(page_size=True)", "whole number"),
        ("streaming_llm(sink=-1)", "sink must be a whole number of at least 0"),
        *((f"{name}={10**20})", "at most 2,147,483,647") for name in HUGE_PARAMETERS),
        ("faiss_hnsw(ef_search=2147483647)", "ef_search must be .* at most 1,048,576"),
        ("faiss_hnsw(M=2000)", "M must be .* at most 1,024"),
        ("faiss_hnsw(M=1)", "M must be a whole number of at least 2; got 1"),
        ("faiss_ivf(nlist=8, nprobe=9)", "1 <= nprobe <= nlist"),
        ("keep(sink=4)", "keep: .*base"),
        ("keep('sign')", "base must be an indexer such as sign"),
        ("keep(sampled())", "would bias the weighted sample"),
        ("shared(keep(sign()))", "reads a score for every key"),
        ("sampled(top=0)", "top must be above 0"),
        ("refine(sign(), factor=0.5)", "factor must be a whole number"),
        ("sign(", "cannot read the indexer"),
        ("", "cannot read the indexer"),
        ("3", "expected an indexer such as"),
        ("__import__('os').system('true')", "expected an indexer such as"),
        ("quest(page_size=1+1)", r"whole number .* got '1\+1'"),
        ("quest(**{'page_size': 1})", "whole number"),
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
        (None, 7, 7),
        (" None", 7, 7),
    ],
)
def test_budgets(text, at, k):
    assert parse_budget(text).at(at) == k
    assert parse_budget(str(parse_budget(text))) == parse_budget(text)


NUMBERS: tuple[Any, ...] = (
    3,
    np.int64(3),
    np.float32(3),
    np.array(3),
    torch.tensor(3),
    torch.tensor([3]),
    "3",
)


def test_budgets_come_from_whatever_holds_numbers():
    for k in NUMBERS:
        assert parse_budget(k) == Budget(3)
        assert parse_budgets(k) == [Budget(3)]
    for ks in (range(3, 5), [3, 4], (3, 4), np.array([3, 4]), torch.tensor([3, 4]), iter("34")):
        assert parse_budgets(ks) == [Budget(3), Budget(4)]
    for several in (range(3, 5), [3, 4], np.array([3, 4]), torch.tensor([3, 4]), np.array([])):
        with pytest.raises(InputError, match="k must be a number of keys"):
            parse_budget(several)
    odds: list[Any] = [np.bool_(True), torch.tensor(True), np.float64(2.5), [[3, 4]], float("nan")]
    for odd in odds:
        with pytest.raises(InputError):
            parse_budgets(odd)


HUGE = [2**31, 2**63 - 1, 10**20, "9" * 400, "9" * 5000]


@pytest.mark.parametrize("bad", ["0", 0, -1, "x", "1.5", "0%", "101%", "", True, "1e3", *HUGE])
def test_bad_budgets_are_refused(bad):
    with pytest.raises(InputError):
        parse_budget(bad)


def test_lists_of_budgets_keep_their_order_once_each():
    assert parse_budgets("16, 1%,16") == [Budget(16), Budget(1, percent=True)]
    assert parse_budgets([16, "1%"]) == parse_budgets("16,1%")
    with pytest.raises(InputError, match="there is no k"):
        parse_budgets([])


@given(st.floats(1e-9, 100) | st.integers(1, 2**31 - 1))
def test_a_budgets_name_is_its_own(amount):
    budget = Budget(amount, percent=isinstance(amount, float))
    assert parse_budget(str(budget)) == budget


def test_budgets_that_are_nearly_alike_have_two_names():
    assert [str(b) for b in parse_budgets("33.33333%,33.333333%,100%,16,1.0%")] == [
        "33.33333%", "33.333333%", "100%", "16", "1%",
    ]  # fmt: skip


@given(st.integers(1, 10**6), st.integers(1, 10**7))
def test_per_cent_rounds_up_without_float_surprises(hundredths, context):
    hundredths = min(hundredths, 10_000)
    text = f"{hundredths // 100}.{hundredths % 100:02d}%"
    assert parse_budget(text).at(context) == max(1, -(-hundredths * context // 10_000))
