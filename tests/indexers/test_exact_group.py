"""One KV group of one layer keeps its exact Top-k, and all else is base's."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from plainly import stream
from tiny import tiny
from topkit.errors import InputError
from topkit.experiments.model.compatibility import probe, unserved
from topkit.indexers import Selection, Step
from topkit.indexers.base import Cache
from topkit.indexers.spec import parse


def asked(spec: str, layer: int, ks: tuple[int, ...] = (3, 8)) -> tuple[dict[int, Selection], ...]:
    recipe = parse(spec)
    one = stream(recipe, 5)
    keys, queries = one.keys, one.queries[:, :, -3:]
    step = Step(layer=layer, kv_heads=2, inputs={"cache": Cache(keys, keys)})
    index = recipe.build(keys, step.given_to(recipe))
    return index.select_many(queries, ks, step.given_to(recipe)), {
        k: index.select(queries, k, step.given_to(recipe)) for k in ks
    }


@pytest.mark.parametrize("base", ["sign()", "shared(sign())", "shared(sign(), per='layer')", "quest(page_size=4)", "streaming_llm(sink=1, window=1)"])  # fmt: skip
def test_the_group_is_exact_and_the_others_are_base(base: str) -> None:
    for group in (0, 1):
        both = asked(f"exact_group({base}, layer=2, group={group})", 2)
        others, exact = asked(base, 2)[0], asked("exact()", 2)[0]
        for chosen in both:
            for k, one in chosen.items():
                for head in range(4):
                    best = head // 2 == group
                    wanted = (exact if best else others)[k].indices
                    line = wanted[:, head * wanted.shape[1] // 4]
                    ours = one.indices[:, head]
                    assert ours[..., : line.shape[-1]].equal(line)
                    assert (ours[..., line.shape[-1] :] == -1).all()


def test_another_layer_is_base_s_own() -> None:
    chosen, plain = asked("exact_group(shared(sign()), layer=2)", 1)[0], asked("shared(sign())", 1)[0]  # fmt: skip
    assert all(chosen[k].indices.equal(plain[k].indices) for k in chosen)


def test_known_scores_are_read_and_nothing_else() -> None:
    recipe = parse("exact_group(sign(), group=1)")
    one = stream(recipe, 3)
    queries = one.queries[:, :, -1:]
    step = Step(kv_heads=2, inputs={"cache": Cache(one.keys, one.keys)}, memo={})
    index = recipe.build(one.keys, step.given_to(recipe))
    known = torch.randn(1, 4, 1, one.keys.shape[2])
    step = replace(step, memo={f"true scores of {one.keys.shape[2]} keys": known})
    chosen = index.select(queries, 4, step.given_to(recipe)).indices
    assert chosen[:, 2:].equal(known[:, 2:].argsort(-1, descending=True)[..., :4])


GROUPS = ["layer=9", "layer=0, group=4", "layer=1, group=1", "layer=0, group=1"]


def reasons(groups: list[str]) -> dict[Any, str]:
    """Why a model of two layers, of which the second slides, cannot serve groups inside another combinator."""
    model = tiny("gemma2", sliding_window=4, layer_types=["full_attention", "sliding_attention"])
    recipes = [parse(f"keep(exact_group(sign(), {one}), sink=1)") for one in groups]
    return unserved(model, recipes, probe(model, softmax=True))


def test_what_no_model_has_is_refused_by_name() -> None:
    for wrong in ("layer=-1", "group=-2", "layer=1.5"):
        with pytest.raises(InputError, match="exact_group"):
            parse(f"exact_group(sign(), {wrong})")
    with pytest.raises(InputError, match=r"group must lie in 0\.\.1; got 2"):
        asked("exact_group(sign(), layer=2, group=2)", 2)
    assert len(reasons(GROUPS)) == 3
    for (_, why), words in zip(
        reasons(GROUPS).items(), ("layer 9", "KV group 4", "a window"), strict=True
    ):
        assert words in why and "exact_group(" in why
    with pytest.raises(InputError, match="weighted"):
        parse("exact_group(sampled(sign()))")
