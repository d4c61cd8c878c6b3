"""Recipes that differ in how an index is searched share what is built, and choose as if each had built its own."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from topkit.experiments.evaluate.built import Built
from topkit.experiments.evaluate.streams import Prefix
from topkit.indexers.base import Cache, Step
from topkit.indexers.combinator import Combinator
from topkit.indexers.spec import parse

RECIPES = {
    "faiss_ivf(nlist=8, nprobe={})": (1, 3, 8),
    "faiss_ivf(nlist=8, nprobe={}, center=True, hadamard=True)": (1, 4),
    "faiss_ivfpq(nlist=4, nprobe={}, bits=4)": (1, 2, 4),
    "faiss_hnsw(M=4, ef_search={})": (1, 2, 9),
    "retrieval_attention(degree=4, nearest=6, ef={})": (1, 5, 20),
    "twilight(quest(page_size=4), candidates={})": (0.1, 0.5, 1.0),
}
CASES = [(text.format(value)) for text, values in RECIPES.items() for value in values]


def tensors(count: int, seed: int = 0) -> tuple[Cache, torch.Tensor]:
    draws = torch.Generator().manual_seed(seed)
    keys, values = torch.randn(2, 1, 2, count, 8, generator=draws)
    return Cache(keys, values), torch.randn(1, 4, count, 8, generator=draws)


def chosen(index, cache: Cache, queries: torch.Tensor, recipe) -> list[torch.Tensor]:
    """What it chooses at three budgets, before a key is appended, behind it, and once that is forgotten."""
    lists = []
    for length in (40, 41, 40):
        inputs = {"cache": cache.until(length)}
        if index.length < length:
            index.append(cache.keys[:, :, index.length : length], Step(kv_heads=2, inputs=inputs))
        index.truncate(length, Step(kv_heads=2, inputs=inputs))
        step = Step(kv_heads=2, inputs=inputs).given_to(recipe)
        many = index.select_many(queries[:, :, length - 1 : length], [2, 5, 11], step)
        lists += [one.indices for one in many.values()]
        lists += [torch.as_tensor(one.bytes_read) for one in many.values()]
    return lists


def step_of(cache: Cache, queries: torch.Tensor, recipe) -> Step:
    inputs = {"cache": cache, "prefill_queries": queries}
    return Step(kv_heads=2, inputs=inputs).given_to(recipe)


@pytest.mark.parametrize("text", CASES)
def test_an_index_that_is_shared_chooses_as_one_of_its_own(text):
    recipe, (cache, queries) = parse(text), tensors(41)
    built = cache.until(40)
    like = recipe.builds_as()
    assert like.builds_as() == like and type(like) is type(recipe)
    shared = like.build(built.keys, step_of(built, queries[:, :, :40], like))
    own = recipe.build(built.keys, step_of(built, queries[:, :, :40], recipe))
    before = chosen(shared.fork(), cache, queries, like)
    ours = chosen(shared.read_as(recipe), cache, queries, recipe)
    for one, other in zip(ours, chosen(own, cache, queries, recipe), strict=True):
        assert torch.equal(one, other)
    # What reads it changes nothing for whoever reads it next.
    for one, other in zip(before, chosen(shared.fork(), cache, queries, like), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("text", [text for text in RECIPES])
def test_a_search_that_is_wider_reads_more(text):
    cache, queries = tensors(41)
    reads = []
    for value in RECIPES[text]:
        recipe = parse(text.format(value))
        like = recipe.builds_as()
        index = like.build(cache.keys, step_of(cache, queries, like)).read_as(recipe)
        step = Step(kv_heads=2, inputs={"cache": cache}).given_to(recipe)
        reads.append(float(torch.as_tensor(index.select(queries[:, :, -1:], 3, step).bytes_read)))
    assert reads == sorted(reads) and reads[0] < reads[-1]


def test_a_haystack_builds_once_what_several_recipes_read(monkeypatch):
    cache, queries = tensors(40)
    prefix = {0: Prefix(cache, 1.0, heads=4, inputs={"prefill_queries": queries})}
    built, made = Built(prefix, 0), []
    build = Built._build
    monkeypatch.setattr(
        Built, "_build", lambda self, *given: made.append(given[0]) or build(self, *given)
    )
    for text in CASES:
        recipe = parse(text)
        index: Any = built.of(recipe)[0]
        assert index.recipe == recipe
        assert built.of(recipe) is built.of(recipe)
    assert len(made) == len(set(made)) == len(RECIPES)


def test_what_is_written_alike_is_built_alike():
    plain = parse("quantized(dtype='int4')")
    assert plain.builds_as() is plain
    wrapped = parse("keep(faiss_ivf(nlist=8, nprobe=3), sink=1)")
    assert isinstance(wrapped, Combinator) and wrapped.builds_as() is wrapped
