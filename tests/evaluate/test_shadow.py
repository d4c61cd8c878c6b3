"""Selections in shadow, and answers' keys, against one slow dense pass of the unchanged model."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoTokenizer

import topkit
from own_indexers import with_indexer
from tiny import READS_REFERENCE, tiny
from topkit.errors import InputError
from topkit.experiments.evaluate.condensed import condensed
from topkit.experiments.model.attention import switched_attention
from topkit.experiments.model.load import REFERENCE
from topkit.experiments.runs.parts import read_table
from topkit.experiments.tasks import answer_keys, make_task

TASK = make_task("niah-multikey", questions=2, distractors=2)
LENGTH, K = 220, 6
NUMBERS = ("recall", "mass", "mass_ratio", "top1", "output_error", "hit", "w", "ws")


@functools.cache
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(REFERENCE)


@functools.cache
def model() -> Any:
    """Random weights, whose queries are made large enough to look somewhere."""
    made = tiny("llama", **{**READS_REFERENCE, "max_position_embeddings": 1024})
    for layer in made.model.layers:
        layer.self_attn.q_proj.weight.data *= 12
    return made


def run(out: Path, specs: Any, k: Any = K, made: Any = None, **how: Any) -> list[dict[str, Any]]:
    given: dict[str, Any] = {"observe": "answer-rows", "shadow": True, **how}
    task, samples = given.pop("task", TASK), given.pop("samples", 1)
    topkit.evaluate(
        made or model(), task, LENGTH, samples, specs, k, out=out, tokenizer=tokenizer(), **given
    )
    return read_table(out / "fidelity").to_pylist()


@functools.cache
@torch.no_grad()
def seen(number: int) -> tuple[dict[int, tuple[Tensor, Tensor, Tensor]], int, tuple[int, ...]]:
    """Queries, keys and values [T, D] of each head by layer of a whole dense pass; where the answer is said; its keys."""
    prompt = TASK.sample(tokenizer(), LENGTH, 0, seed=0)
    keys = answer_keys(prompt, tokenizer())
    assert keys is not None
    question = prompt.questions[number]
    ids = [*prompt.ids, *question.ids, *question.answer_ids]
    kept = {}

    def attend(call: Any) -> Tensor:
        per = call.queries.shape[1] // call.keys.shape[1]
        own = (call.queries, *(x.repeat_interleave(per, 1) for x in (call.keys, call.values)))
        kept[call.layer] = tuple(x[0].double() for x in own)
        return call.dense()

    with switched_attention(model(), attend):
        model()(torch.tensor([ids]), use_cache=False)
    return kept, len(prompt.ids) + len(question.ids) - 1, keys[number]


def exactly(query: Tensor, keys: Tensor) -> Tensor:
    return keys @ query


def by_sign(query: Tensor, keys: Tensor) -> Tensor:
    return torch.where(keys >= 0, 1.0, -1.0).double() @ query


def slowly(
    number: int, judge: Callable[..., Tensor]
) -> dict[tuple[int, int, int], dict[str, float]]:
    """The columns of each layer, head and position of the answer's steps."""
    kept, first, wanted = seen(number)
    rows = {}
    for layer, (queries, keys, values) in kept.items():
        scaling = queries.shape[-1] ** -0.5
        for head in range(len(queries)):
            for step, slot in enumerate(wanted):
                at = first + step
                own = keys[head, : at + 1]
                logits = scaling * (own @ queries[head, at])
                weights, best = logits.softmax(0), logits.argsort(descending=True, stable=True)[:K]
                chosen = judge(queries[head, at], own).argsort(descending=True, stable=True)[:K]
                mass = weights[chosen].sum()
                dense = weights @ values[head, : at + 1]
                sparse = logits[chosen].softmax(0) @ values[head, chosen]
                there = slot in chosen.tolist()
                rows[layer, head, at] = {
                    "recall": len({*best.tolist()} & {*chosen.tolist()}) / K,
                    "mass": float(mass),
                    "mass_ratio": float(mass / weights[best].sum()),
                    "top1": float(best[0] in chosen),
                    "output_error": float((sparse - dense).norm() / dense.norm()),
                    "hit": float(there) if slot >= 0 else np.nan,
                    "w": float(weights[slot]) if slot >= 0 else np.nan,
                    "ws": (float(weights[slot] / mass) if there else 0.0) if slot >= 0 else np.nan,
                }
    return rows


@pytest.mark.parametrize("sparse_from", ["question", "answer"])
def test_rows_in_shadow_are_those_of_the_dense_queries(tmp_path: Path, sparse_from: str) -> None:
    rows = run(tmp_path, ["exact", "sign"], [K, 12], sparse_from=sparse_from)
    assert {row["steps"] for row in rows} == {"answer"}
    for spec, judge in (("exact()", exactly), ("sign()", by_sign)):
        for number in range(2):
            slow = slowly(number, judge)
            own = [
                row
                for row in rows
                if (row["indexer"], row["question"], row["budget"]) == (spec, number, str(K))
                and row["shadow"]
            ]
            assert len(own) == len(slow) > 0
            assert {row["w"] is None for row in own} == {True, False}
            for row in own:
                expected = slow[row["layer"], row["head"], row["position"]]
                ours = {name: np.nan if row[name] is None else row[name] for name in NUMBERS}
                assert ours == pytest.approx(expected, abs=1e-4, nan_ok=True), spec
    # What is made of all keys is what full attention makes.
    assert sum(row["hit"] or 0 for row in rows) > 0


REMEMBERS = "h2o()"
SPECS = ["quest(page_size=4)", "retroinfer()", "sparq()", "shared(sign())", "reuse(sign(), every=2)", REMEMBERS, "sampled(sign())", "keep(sign(), sink=2)"]  # fmt: skip


@pytest.mark.slow
def test_all_kinds_of_recipes_in_shadow_of_a_model_that_they_leave_as_it_is(tmp_path: Path) -> None:
    """At a budget of all keys no stream departs from the dense one: both are judged alike."""
    rows = run(tmp_path, SPECS, ["100%"], observe="rows")
    key = ("indexer", "question", "steps", "level", "layer", "head", "position")
    both = {False: dict[Any, Any](), True: dict[Any, Any]()}
    for row in rows:
        both[row["shadow"]][tuple(row[name] for name in key)] = row
    assert both[True].keys() == both[False].keys() and len(both[True]) == len(rows) / 2
    assert {row["indexer"].partition("(")[0] for row in rows} >= {"quest", "retroinfer", "h2o"}
    whole = {"quest", "shared", "reuse", "keep"}
    for place, ours in both[True].items():
        if place[0].partition("(")[0] not in whole:
            continue
        theirs = both[False][place]
        for name in (*NUMBERS, "kept", "keys_scored", "bytes_read"):
            a, b = (np.nan if row[name] is None else row[name] for row in (ours, theirs))
            assert a == pytest.approx(b, abs=1e-4, rel=1e-4, nan_ok=True), (place, name)


def sorted_rows(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    names = (
        "haystack",
        "indexer",
        "budget",
        "shadow",
        "question",
        "steps",
        "level",
        "layer",
        "head",
    )
    return sorted(rows, key=lambda row: (*(row[n] for n in names), row["position"] or 0))


@pytest.mark.slow
def test_rows_do_not_depend_on_the_cells_beside_them_nor_on_a_rerun(tmp_path: Path) -> None:
    given: dict[str, Any] = {"observe": True}
    at_once = run(tmp_path / "a", ["shared(sign())", "sign"], [4, 9], **given)
    run(tmp_path / "b", ["sign"], [9], **given)
    resumed = run(tmp_path / "b", ["shared(sign())", "sign"], [4, 9], **given)
    for ours, theirs in zip(sorted_rows(resumed), sorted_rows(at_once), strict=True):
        for name, x in ours.items():
            near = isinstance(x, float)
            assert x == (pytest.approx(theirs[name], abs=1e-5) if near else theirs[name]), name
    haystacks, heads = condensed(tmp_path / "b")
    head = [row for row in resumed if row["level"] == "head" and row["steps"] == "answer"]
    for table, names in ((haystacks, ("haystack",)), (heads, ("layer", "head"))):
        for row in table.to_pylist():
            if row["indexer"] == "dense":
                continue
            for shadow, prefix in ((False, ""), (True, "shadow_")):
                mine = [
                    r["ws"]
                    for r in head
                    if r["shadow"] == shadow
                    and all(r[n] == row[n] for n in (*names, "indexer", "budget"))
                ]
                assert row[f"{prefix}ws"] == pytest.approx(np.mean(mine)), prefix


UNJUDGED = ["clusterkv(sink=2, update=4)", "previous(sign(), every=3)", "h2o()", "reuse(sign(), every=2)", "snapkv(window=4)"]  # fmt: skip


@pytest.mark.slow
def test_what_the_question_s_steps_choose_unjudged_changes_no_row(tmp_path: Path) -> None:
    """Of recipes that remember, that read one key at a time, and that read another layer's list."""
    judged = run(tmp_path / "a", [*UNJUDGED, "sign"], observe="rows")
    alone = run(tmp_path / "b", [*UNJUDGED, "sign"], observe="answer-rows")
    both = sorted_rows([row for row in judged if row["steps"] == "answer"]), sorted_rows(alone)
    assert len(alone) > 0 and any(row["shadow"] for row in alone)
    for ours, theirs in zip(*both, strict=True):
        assert ours == theirs


def test_without_a_key_there_is_no_weight_and_the_plan_says_so(tmp_path: Path) -> None:
    books = make_task("books", tokens=4)
    rows = run(tmp_path, ["exact"], task=[books, TASK], shadow=False, observe=True)
    for row in rows:
        empty = row["task"].startswith("books")
        assert all((row[name] is None) == empty for name in ("hit", "w", "ws"))
        assert row["shadow"] is False
    plan = topkit.evaluate.plan(
        model(), [books, TASK], LENGTH, 1, "exact", K, out=tmp_path / "p", tokenizer=tokenizer()
    )
    (line,) = [note for note in plan.notes if "hit, w and ws" in note]
    assert "books" in line and "multikey" not in line


def test_a_model_s_own_lists_in_shadow(tmp_path: Path) -> None:
    shape = {name: x for name, x in READS_REFERENCE.items() if name != "head_dim"}
    made = with_indexer("glm_moe_dsa", **{**shape, "index_topk": 16})
    rows = run(tmp_path, "native", 16, made)
    own = [row for row in rows if row["shadow"]]
    assert len(own) == len(rows) / 2 and {row["kept"] for row in own} == {16.0}
    first = min(row["position"] for row in own)
    for row in own:
        if row["layer"] == 0 and row["position"] == first:  # which nothing has come before
            (seen_,) = [r for r in rows if not r["shadow"] and all(r[n] == row[n] for n in ("question", "layer", "head", "position", "level"))]  # fmt: skip
            assert row["w"] == pytest.approx(seen_["w"], abs=1e-5) or row["w"] is None


def test_shadow_without_anything_observed_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="shadow judges what is observed"):
        run(tmp_path, "exact", observe=False)
    run(tmp_path, "exact")
    with pytest.raises(InputError):
        run(tmp_path, "exact", shadow=False)
