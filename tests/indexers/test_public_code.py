"""Recipes choose what public code chose of the same tensors: tests/indexers/public, by tools/public_choices.py."""

from __future__ import annotations

import importlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from topkit.contract.streams import Stream
from topkit.indexers import INDEXERS, Indexer, Selection
from topkit.indexers.spec import parse

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "tests" / "indexers" / "public").glob("*.json"))
DOCUMENTS = {path.stem: json.loads(path.read_text()) for path in FILES}
AGREEING = [name for name, document in DOCUMENTS.items() if "departs" not in document]
DEPARTING = [
    (name, n)
    for name in set(DOCUMENTS) - set(AGREEING)
    for n in range(len(DOCUMENTS[name]["cases"]))
]
CASES = [(name, n) for name in AGREEING for n in range(len(DOCUMENTS[name]["cases"]))]
# Scores are equal that differ by so much of the largest magnitude: some roundings of float32.
TIE = 1e-5


@pytest.fixture
def cases(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The tool's own: a test draws the tensors by the code that drew them for public code."""
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    return importlib.import_module("public.case").Case


def stream(case: Any) -> Stream:
    tensors = case.tensors()
    queries, keys = tensors["queries"], tensors["keys"]
    tokens = {name: tensors[name] for name in ("hidden", "latent", "cos", "sin")}
    return Stream(
        queries, keys, tensors["values"], {**tokens, "index_weights": queries.mean(-1).mT},
        {"prefill_queries": queries}, kv_heads=keys.shape[1], seed=case.seed,
    )  # fmt: skip


def answers(case: Any, spec: str, choices: list[list[int]]) -> tuple[list[set[int]], Tensor | None]:
    """What the newest token selects by each list, as many keys as public code chose; the scores, if all have one."""
    recipe, one = parse(spec), stream(case)
    if case.layers:
        return by_layer(case, recipe, len(choices[0])), None
    prompt = case.prompt or case.length
    index = one.build(recipe, [prompt])
    for cut in range(prompt + 1, case.length + 1):
        one.append(recipe, index, cut)
        if recipe.traits().remembers and cut < case.length:
            one.ask(recipe, index, case.k)
    ks = [len(chosen) if case.k is None else case.k for chosen in choices]
    each = {k: one.ask(recipe, index, k).indices[0, :, 0].tolist() for k in sorted(set(ks))}
    got = [{slot for slot in each[k][head] if slot >= 0} for head, k in enumerate(ks)]
    if not recipe.traits().score_all:
        return got, None
    step = one.step(recipe, slice(case.length - 1, case.length), case.length)
    return got, index.score(one.queries[:, :, -1:], step)[0, :, 0]


def by_layer(case: Any, recipe: Indexer, k: int) -> list[set[int]]:
    """What the newest token selects in the last of several layers, each handed the list of its source."""
    chosen: dict[int, Selection] = {}
    for layer in case.layers:
        one = replace(stream(case.of_layer(layer)), layer=layer)
        step = one.step(recipe, slice(case.length - 1, case.length), case.length)
        source = recipe.upstream_layer(layer)
        if source is not None:
            step = replace(step, inputs={**step.inputs, "upstream": chosen.get(source)})
        chosen[layer] = one.build(recipe).select(one.queries[:, :, -1:], k, step)
    return [set(slots) - {-1} for slots in chosen[layer].indices[0, :, 0].tolist()]


def apart(want: list[int], got: set[int], scores: Tensor | None) -> set[int]:
    """Slots of one choice and not of the other, without those that tie with the last that was chosen."""
    other = set(want) ^ got
    if scores is None or not other:
        return other
    last = scores[list(got)].min()
    near = TIE * float(scores[scores.isfinite()].abs().max())
    return {slot for slot in other if abs(float(scores[slot] - last)) > near}


def differences(case: Any, spec: str, choices: list[list[int]]) -> list[set[int]]:
    got, scores = answers(case, spec, choices)
    rows = [None] * len(got) if scores is None else scores
    return [apart(*one) for one in zip(choices, got, rows, strict=True)]


def share(case: Any, spec: str, choices: list[list[int]]) -> float:
    """Of what public code chose, the part that the recipe chooses too."""
    got, _ = answers(case, spec, choices)
    both = [len(set(want) & own) for want, own in zip(choices, got, strict=True)]
    return sum(both) / sum(map(len, choices))


@pytest.mark.parametrize(("name", "n"), CASES)
def test_the_recipe_chooses_what_public_code_chose(name, n, cases, tmp_path):
    held = DOCUMENTS[name]["cases"][n]
    case = cases.read(held["case"])
    first = case.tensors()["queries"].flatten()[: len(held["drawn"])]
    drawn = torch.tensor(held["drawn"])
    assert torch.allclose(first, drawn, atol=1e-3), "numpy draws other tensors: record anew"
    spec = case.spec(case.written(tmp_path))
    assert not any(differences(case, spec, held["choices"]))
    # None chose all keys, and none nothing.
    assert all(0 < len(chosen) < case.length for chosen in held["choices"])


@pytest.mark.parametrize(("name", "n"), CASES)
def test_another_parameter_chooses_otherwise(name, n, cases, tmp_path):
    held = DOCUMENTS[name]["cases"][n]
    case = cases.read(held["case"])
    mutant = case.spec(case.written(tmp_path), mutant=True)
    assert any(differences(case, mutant, held["choices"]))


@pytest.mark.parametrize(("name", "n"), sorted(DEPARTING))
def test_how_far_public_code_departs(name, n, cases, tmp_path):
    held, agreement = DOCUMENTS[name]["cases"][n], DOCUMENTS[name]["agreement"][n]
    case = cases.read(held["case"])
    path = case.written(tmp_path)
    assert share(case, case.spec(path), held["choices"]) == pytest.approx(agreement, abs=0.01)
    assert share(case, case.spec(path, mutant=True), held["choices"]) < 1


def test_at_least_ten_methods_agree():
    assert len(AGREEING) >= 10
    assert set(DOCUMENTS) <= set(INDEXERS)
    for name in AGREEING:
        assert all(
            held["case"]["recipe"].startswith(f"{name}(") for held in DOCUMENTS[name]["cases"]
        )


@pytest.mark.usefixtures("cases")
@pytest.mark.parametrize("name", DOCUMENTS)
def test_what_is_recorded_is_what_the_tool_would_ask(name):
    own, document = importlib.import_module(f"public.{name}"), DOCUMENTS[name]
    held = [one["case"] for one in document["cases"]]
    assert held == json.loads(json.dumps([case.document() for case in own.CASES]))
    assert (document["repository"], document["code"]) == (own.REPOSITORY, own.CODE)
    for said in ("note", "departs", "agreement"):
        assert document.get(said, "") == json.loads(json.dumps(getattr(own, said.upper(), "")))
    assert document["command"].split()[1:3] == ["tools/public_choices.py", name]
