"""What recipes read beside keys and queries, from every driver: values, the prompt's queries, other layers."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

import topkit
from tiny import prompt, tiny
from topkit.errors import InputError
from topkit.experiments.capture.capture import Capture
from topkit.experiments.capture.from_model import capture_passages
from topkit.experiments.capture.prompts import Passage
from topkit.experiments.decode.attach import attach
from topkit.experiments.evaluate.evaluate import evaluate
from topkit.experiments.model.load import load
from topkit.experiments.model.record import record
from topkit.experiments.tasks import make_task
from topkit.indexers import Selection, exact, sign
from topkit.indexers.spec import parse
from topkit.indexers.traits import Traits

LENGTH, K = 320, 6
TASK = make_task("niah-multikey", wording="trained", questions=2, distractors=2)
slow = pytest.mark.slow
reference = functools.cache(lambda: load("reference"))

# What a recipe was shown: (call, layer) -> tensors, in their order.
shown: dict[tuple[str, int], list[Tensor]] = {}


@dataclass(frozen=True)
class looks(sign):
    """Notes what it is shown of values and of the prompt's queries."""

    def traits(self) -> Traits:
        return replace(super().traits(), needs=frozenset({"values", "prefill_queries"}))

    def build(self, keys: Tensor, step: Any) -> Any:
        shown.setdefault(("build", step.layer), []).append(step.values)
        shown.setdefault(("prefill", step.layer), []).append(step.prefill_queries)
        return super().build(keys, step)

    def write(self, keys: Tensor, codes: Any, at: Any, step: Any) -> None:
        shown.setdefault(("append", step.layer), []).append(step.values)
        super().write(keys, codes, at, step)

    def pick(self, queries: Tensor, codes: Any, k: int, step: Any, pool: Any = None) -> Tensor:
        shown.setdefault(("select", step.layer), []).append(step.values)
        return super().pick(queries, codes, k, step, pool)


def seen(model: Any, ids: list[int]) -> dict[int, Any]:
    """What attention saw of every token, by layer."""
    return record(model, torch.tensor([ids]), torch.arange(len(ids)))


def same(got: Tensor, want: Tensor) -> None:
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


@pytest.fixture(autouse=True)
def nothing_shown() -> None:
    shown.clear()


def test_attach_shows_values_and_the_queries_of_the_prompt() -> None:
    model, ids = tiny(), prompt()["input_ids"]
    with attach(model, looks(), k=4):
        said = model.generate(ids, max_new_tokens=4, do_sample=False)
    records = seen(model, said[0, :-1].tolist())
    for layer, whole in records.items():
        same(shown["prefill", layer][0], whole.queries[:, :, :24])
        same(shown["build", layer][0], whole.values[:, :, :24])
        # Behind the dense prompt values differ, but for their shapes, from layer 1 on.
        if layer == 0:
            for calls in (shown["append", 0][1:], shown["select", 0]):
                same(torch.cat(calls, 2), whole.values[:, :, 24:])


def test_evaluate_shows_values_and_the_queries_of_the_haystack(tmp_path: Any) -> None:
    model, tokenizer = reference()
    options: dict[str, Any] = {"out": tmp_path, "tokenizer": tokenizer, "observe": False}
    evaluate(model, TASK, LENGTH, 1, looks(), K, **options)
    made = TASK.sample(tokenizer, LENGTH, 0, seed=0)
    for layer, whole in seen(model, list(made.ids)).items():
        same(shown["prefill", layer][0], whole.queries)
        same(shown["build", layer][0], whole.values)
    # Each question is a row of the one batch, or a batch of its own.
    first = seen(model, [*made.ids, *made.questions[0].ids])[0].values[:, :, len(made.ids) :]
    calls = [x[:1] for x in shown["select", 0]]
    same(torch.cat(calls, 2)[:, :, : first.shape[2]], first)


@pytest.mark.parametrize(("asked", "count"), [(5, 5), ("all", 30), (64, 30)])
def test_a_capture_keeps_queries_of_the_prompt_and_measure_shows_them(
    tmp_path: Any, asked: Any, count: int
) -> None:
    model = tiny()
    ids = torch.randint(3, 61, (40,), generator=torch.Generator().manual_seed(3)).tolist()
    passages = [Passage(ids, [30, 33, 39])]
    how: dict[str, Any] = {"out": tmp_path / "c", "origin": {}}
    plan = capture_passages.plan(model, passages, prefill_queries=asked, **how)
    capture = capture_passages(model, passages, prefill_queries=asked, **how)
    assert plan.bytes == sum(f["bytes"] for f in capture.manifest["files"])
    topkit.measure(capture, looks(), K)
    for layer, whole in seen(model, ids).items():
        t = capture.load(0, layer)
        assert t.prefill_queries is not None
        same(t.prefill_queries, whole.queries[:, :, 30 - count : 30])
        same(t.queries, whole.queries[:, :, [30, 33, 39]])
        same(shown["prefill", layer][0], t.prefill_queries)
        # As in decoding: built before the first query, and each query beside its own token's values.
        same(shown["build", layer][0], whole.values[:, :, :30])
        same(shown["append", layer][1], whole.values[:, :, 30:])
        same(shown["select", layer][0], whole.values[:, :, [30, 33, 39]])
    again = capture.save(tmp_path / "saved")
    assert again.fingerprint == capture.fingerprint
    with pytest.raises(InputError, match="differs in prefill_queries"):
        capture_passages(model, passages, **how)


def test_queries_of_the_prompt_are_refused_where_there_is_none(tmp_path: Any) -> None:
    model, ids = tiny(), list(range(3, 23))
    for positions, asked, said in (
        ([0, 5], 4, "before the first position, which is 0"),
        ([9], "some", "prefill_queries must be a number or all; got 'some'"),
        ([9], -1, "prefill_queries must be a number or all; got -1"),
    ):
        with pytest.raises(InputError, match=said):
            capture_passages(
                model, [Passage(ids, positions)], out=tmp_path, origin={}, prefill_queries=asked
            )
    drawn = torch.randn(1, 2, 8, 4)
    with pytest.raises(InputError, match="tokens before position 7, the first; got 8"):
        Capture.from_tensors(drawn[:, :, -1:], drawn, prefill_queries=drawn)
    plain = Capture.from_tensors(drawn[:, :, -1:], drawn, drawn)
    with pytest.raises(
        InputError, match=r"needs prefill_queries, .* capture with --prefill-queries"
    ):
        topkit.measure(plain, looks(), 3)


def slow_logits(model: Any, ids: list[int], first: int, every: int, k: int) -> Tensor:
    """One pass; from `first` on queries see what signs choose in every so many layers, the others the same."""
    chosen: dict[tuple[int, int], Tensor] = {}

    def attention(module, query, key, value, mask, scaling, **_: Any):
        times = query.shape[1] // key.shape[1]
        key, value = (x.repeat_interleave(times, 1) for x in (key, value))
        scores = (query @ key.mT) * scaling
        count = scores.shape[-1]
        keep = torch.ones(count, count, dtype=torch.bool).tril()[None].repeat(query.shape[1], 1, 1)
        for q in range(first, count):
            for head in range(query.shape[1]):
                if module.layer_idx % every == 0:
                    bits = torch.where(key[0, head, : q + 1] >= 0, 1.0, -1.0).double()
                    order = (bits @ query[0, head, q].double()).argsort(
                        descending=True, stable=True
                    )
                    chosen[head, q] = order[:k]
                keep[head, q] = False
                keep[head, q, chosen[head, q]] = True
        weights = scores.masked_fill(~keep[None], float("-inf")).softmax(-1)
        return (weights @ value).transpose(1, 2), None

    AttentionInterface.register("slow_reuse", attention)
    AttentionMaskInterface.register("slow_reuse", sdpa_mask)
    before = model.config._attn_implementation
    model.set_attn_implementation("slow_reuse")
    try:
        with torch.no_grad():
            return model(torch.tensor([ids]), use_cache=False).logits[0]
    finally:
        model.set_attn_implementation(before)


@pytest.mark.slow
@pytest.mark.parametrize("sparse_from", ["question", pytest.param("answer", marks=slow)])
def test_evaluate_reads_the_choice_of_another_layer(tmp_path: Any, sparse_from: str) -> None:
    model, tokenizer = reference()
    options: dict[str, Any] = {"out": tmp_path, "tokenizer": tokenizer, "sparse_from": sparse_from}
    specs = ["reuse(sign(), every=3)", "sign()"]
    # Two budgets of a recipe stand in one stream, and each reads its own.
    rows = evaluate(model, TASK, LENGTH, 1, specs, [K, 3 * K], **options).to_pylist()
    made = TASK.sample(tokenizer, LENGTH, 0, seed=0)
    for number, question in enumerate(made.questions):
        before = [*made.ids, *question.ids]
        first = len(made.ids) if sparse_from == "question" else len(before) - 1
        answer = torch.tensor(question.answer_ids)
        for k in (K, 3 * K):
            logits = slow_logits(model, [*before, *question.answer_ids], first, 3, k)
            logs = logits[len(before) - 1 : -1].log_softmax(-1)
            nll = -logs.gather(-1, answer[:, None]).mean()
            reused, plain = (
                one["nll"]
                for name in ("reuse(base=sign(), every=3, layers=())", "sign()")
                for one in rows
                if (one["indexer"], one["budget"], one["question"]) == (name, str(k), number)
            )
            assert reused == pytest.approx(nll.item(), rel=1e-3, abs=1e-4)
            assert abs(plain - nll.item()) > 1e-3


def layers_drawn(count: int = 3, samples: int = 2) -> Capture:
    g = torch.Generator().manual_seed(1)
    queries, keys = (
        {n: torch.randn(samples, heads, width, 16, generator=g) for n in range(count)}
        for heads, width in ((4, 5), (2, 60))
    )
    return Capture.from_tensors(queries, keys, keys)


@pytest.mark.parametrize("jobs", [1, pytest.param(2, marks=slow)])
def test_measure_reads_the_choice_of_another_layer(tmp_path: Any, jobs: int) -> None:
    """Its list is the source's own, judged by the layer's own keys; also in processes, and from disk."""
    capture = layers_drawn()
    capture = capture if jobs == 1 else capture.save(tmp_path / "c")
    spec = "reuse(quantized(dtype='int2'), every=2)"
    rows = topkit.measure(capture, spec, [3, 7], layers=[1, 2], jobs=jobs).table.to_pylist()
    for r in rows:
        own, source = (capture.load(r["sample"], n) for n in (r["layer"], r["layer"] // 2 * 2))
        place = own.positions.tolist().index(r["position"])
        recipe, seen_keys = parse("quantized(dtype='int2')"), slice(0, r["position"] + 1)
        step = topkit_step(source)
        index = recipe.build(source.keys[:, :, seen_keys], step)
        chosen = index.select(source.queries[:, :, place : place + 1], r["k"], step).indices
        exactly = exact().build(own.keys[:, :, seen_keys], topkit_step(own, seen_keys))
        best = exactly.select(
            own.queries[:, :, place : place + 1], r["k"], topkit_step(own, seen_keys)
        ).indices
        a, b = (set(x[0, r["head"], 0].tolist()) for x in (chosen, best))
        assert r["recall"] == pytest.approx(len(a & b) / r["k"])


def topkit_step(t: Any, seen_keys: slice | None = None) -> Any:
    from topkit.indexers import Cache, Step

    inputs = {} if seen_keys is None else {"cache": Cache(t.keys[:, :, seen_keys])}
    return Step(t.layer, t.scaling, kv_heads=t.keys.shape[1], inputs=inputs)


def test_measure_refuses_a_source_that_was_not_captured(tmp_path: Any) -> None:
    capture = Capture.from_tensors(
        {n: torch.randn(1, 2, 3, 8) for n in (1, 2)}, {n: torch.randn(1, 2, 20, 8) for n in (1, 2)}
    )
    with pytest.raises(
        InputError, match=r"in layer 1 what layer 0 selected.*the capture selects in"
    ):
        topkit.measure(capture, "reuse(sign(), every=2)", 4, out=tmp_path / "r")
    assert not (tmp_path / "r").exists()
    assert topkit.measure(capture, "reuse(sign(), every=2)", 4, layers=[2]).table.num_rows == 6


def test_a_selection_read_elsewhere_is_shown_where_it_is_made_alone() -> None:
    @dataclass(frozen=True)
    class builds_by_it(sign):
        def traits(self) -> Traits:
            return replace(super().traits(), needs=frozenset({"upstream"}))

        def upstream_layer(self, layer: int) -> int | None:
            return layer - 1 if layer else None

        def build(self, keys: Tensor, step: Any) -> Any:
            if step.layer:
                assert isinstance(step.upstream, Selection)
            return super().build(keys, step)

    with pytest.raises(InputError, match="needs 'upstream'; this driver has none"):
        topkit.measure(layers_drawn(), builds_by_it(), 4)
