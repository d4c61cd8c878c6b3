"""Accuracy with keys left out, against whole forward passes with slow masks of their own."""

import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

import topkit
from tiny import like_reference
from topkit.cli.summary import accuracy, left_out
from topkit.errors import InputError
from topkit.experiments.evaluate import answers, built
from topkit.experiments.evaluate.condensed import condensed
from topkit.experiments.evaluate.evaluate import evaluate
from topkit.experiments.model.load import REFERENCE, load, load_once
from topkit.experiments.runs.folder import claim
from topkit.experiments.runs.parts import write_part
from topkit.experiments.runs.run_file import commit, describe
from topkit.experiments.study.curves import load as load_curves
from topkit.experiments.study.findings import Findings
from topkit.experiments.study.report import write_report
from topkit.experiments.tasks import make_task
from topkit.experiments.train.lightning import save_weights
from topkit.indexers import Selection
from topkit.indexers.lightning_weights import load as load_weights
from topkit.indexers.stateless import Stateless

LENGTH = 320
TASK = make_task("niah-multikey", wording="trained", questions=2, distractors=6)


@functools.cache
def reference():
    return load("reference")


def run(out, indexers=(), k=(), samples=2, tasks=TASK, **options):
    model, tokenizer = reference()
    given = dict(tokenizer=tokenizer) if options.get("jobs", 1) == 1 else {}
    model = model if given else "reference"
    options = {"out": out, **given, **options}
    return evaluate(model, tasks, LENGTH, samples, indexers, k, **options).to_pylist()


def planned(out, indexers=(), k=(), samples=1, **options):
    model, tokenizer = reference()
    options = {"tasks": TASK, "lengths": LENGTH, "tokenizer": tokenizer, **options}
    return evaluate.plan(model, samples=samples, indexers=indexers, k=k, out=out, **options)


def of(rows, indexer, **where):
    return [r for r in rows if r["indexer"] == indexer and all(r[n] == x for n, x in where.items())]


def same(a, b):
    assert len(a) == len(b)
    for x, y in zip(a, b, strict=True):
        for name in x:
            if isinstance(x[name], float):
                assert x[name] == pytest.approx(y[name], abs=1e-4), name
            else:
                assert x[name] == y[name], name


@torch.no_grad()
def slow_logits(ids, first, chosen):
    """Logits of all of ids in one pass; queries from `first` on see what `chosen` lets them."""
    model, _ = reference()

    def attention(module, query, key, value, mask, scaling, **_):
        key, value = (x.repeat_interleave(3, 1) for x in (key, value))
        scores = (query @ key.mT) * scaling
        count = scores.shape[-1]
        seen = torch.ones(count, count, dtype=torch.bool).tril()[None].repeat(6, 1, 1)
        for q in range(first, count):
            for head in range(6):
                keep = chosen(query[0, head, q], key[0, head, : q + 1], scores[0, head, q, : q + 1])
                seen[head, q] = False
                seen[head, q, keep] = True
        weights = scores.masked_fill(~seen[None], float("-inf")).softmax(-1)
        return (weights @ value).transpose(1, 2), None

    AttentionInterface.register("slow", attention)
    AttentionMaskInterface.register("slow", sdpa_mask)
    before = model.config._attn_implementation
    model.set_attn_implementation("slow")
    try:
        return model(torch.tensor([ids]), use_cache=False).logits[0]
    finally:
        model.set_attn_implementation(before)


def top(k, query, keys, scores):
    return scores.argsort(descending=True, stable=True)[:k]


def by_sign(k, query, keys, scores):
    """The query against the keys' signs, ties to the lowest slots."""
    scores = torch.where(keys >= 0, 1.0, -1.0).double() @ query.double()
    return scores.argsort(descending=True, stable=True)[:k]


@pytest.mark.parametrize(
    ("indexer", "chosen", "sparse_from"),
    [
        ("sign()", by_sign, "answer"),
        pytest.param("exact()", top, "question", marks=pytest.mark.slow),
        pytest.param("exact()", top, "answer", marks=pytest.mark.slow),
        pytest.param("sign()", by_sign, "question", marks=pytest.mark.slow),
    ],
)
def test_as_in_one_pass_with_slow_masks(tmp_path, indexer, chosen, sparse_from):
    """NLL and KL of every answer, and what is said greedily, token by token."""
    _, tokenizer = reference()
    k = 6
    rows = run(tmp_path / "run", indexer, k=k, samples=1, sparse_from=sparse_from)
    prompt = TASK.sample(tokenizer, LENGTH, 0, seed=0)
    name = repr(topkit.indexer(indexer))
    for number, question in enumerate(prompt.questions):
        (row,) = of(rows, name, question=number)
        before = [*prompt.ids, *question.ids]
        first = len(prompt.ids) if sparse_from == "question" else len(before) - 1
        answer = list(question.answer_ids)
        pick = functools.partial(chosen, k)
        logits = slow_logits([*before, *answer], first, pick)[len(before) - 1 : -1]
        full = slow_logits([*before, *answer], 10**9, pick)[len(before) - 1 : -1]
        logs, dense = logits.log_softmax(-1), full.log_softmax(-1)
        nll = -logs.gather(-1, torch.tensor(answer)[:, None]).mean()
        assert row["nll"] == pytest.approx(nll.item(), rel=1e-3, abs=1e-4)
        kl = (dense.exp() * (dense - logs)).sum(-1).mean()
        assert row["kl"] == pytest.approx(kl.item(), rel=1e-3, abs=1e-4)
        right = logits.argmax(-1) == torch.tensor(answer)
        assert row["token_accuracy"] == pytest.approx(right.float().mean().item())
        assert row["exact_match"] == float(right.all())
        if number:
            continue
        said, text = [], ""
        while (
            len(said) < len(answer) + 10 and "\n" not in text and tokenizer.eos_token_id not in said
        ):
            ids = [*before, *said]
            said.append(int(slow_logits(ids, first, pick)[-1].argmax()))
            text = tokenizer.decode(said)
        assert row["said"] == text.partition("\n")[0]
        assert row["said_tokens"] == len(said)


def test_all_keys_are_full_attention(tmp_path):
    specs = ["exact", "quest", "lightning", "quantized:dtype=int4", "shared(sign())"]
    rows = run(tmp_path, specs, k=LENGTH + 100, samples=1, observe=False)
    dense = of(rows, "dense")
    assert [r["exact_match"] for r in dense] == [1, 1]
    for spec in specs:
        for row, full in zip(of(rows, repr(topkit.indexer(spec))), dense, strict=True):
            assert row["nll"] == pytest.approx(full["nll"], abs=1e-4)
            assert row["kl"] == pytest.approx(0, abs=1e-5)
            assert row["said"] == full["said"]


@dataclass(frozen=True)
class names_slots(Stateless):
    """The first slot and one more."""

    more: int = 0

    def choose(self, queries, k, step, length):
        first = torch.zeros(*queries.shape[:3], 1, dtype=torch.long)
        return Selection(torch.cat([first, first + self.more], -1))


@pytest.mark.parametrize("observe", [False, True])
@pytest.mark.parametrize(
    ("more", "what"), [(0, "slot 0 twice"), (700, "slot 700, where its query")]
)
def test_slots_that_are_none_are_refused_by_the_recipes_name(tmp_path, more, what, observe):
    with pytest.raises(InputError, match=rf"names_slots\(more={more}\) chose {what}"):
        run(tmp_path, names_slots(more), k=4, samples=1, dense=False, observe=observe)
    assert not list((tmp_path / "accuracy").glob("*.parquet"))


# None is 100%.
@pytest.mark.parametrize(
    "k", [LENGTH + 100, *(pytest.param(k, marks=pytest.mark.slow) for k in (None, "100%"))]
)
def test_where_k_covers_the_whole_context_numbers_stay_numbers(tmp_path, k):
    specs = ["sign()", "shared(sign())", "top_p(mass=0.5)"]
    run(tmp_path, specs, k=k, samples=2)
    rows = pa.concat_tables(
        map(pq.read_table, (tmp_path / "fidelity").glob("*.parquet"))
    ).to_pylist()
    rows = [r for r in rows if r["steps"] == "answer" and r["level"] == "head"]
    assert all(r["trivial"] for r in rows)
    curves = load_curves(tmp_path)
    numbers = {r["indexer"]: r for r in accuracy(curves, as_json=True)}
    for spec in specs:
        name = repr(topkit.indexer(spec))
        own, row = of(rows, name), numbers[name]
        assert row["note"] == "k covers the whole context"
        for metric in ("recall", "own_recall", "mass", "kept", "output_error"):
            mean = sum(r[metric] for r in own) / len(own)
            assert row[metric] == pytest.approx(mean, abs=1e-9), metric
    full, adaptive = numbers["sign()"], numbers["top_p(base=exact(), mass=0.5)"]
    assert (full["recall"], full["own_recall"]) == (1, 1)
    assert full["mass"] == pytest.approx(1, abs=1e-5)
    assert adaptive["own_recall"] == 1 and adaptive["recall"] < 0.5 <= adaptive["mass"] < 1
    assert adaptive["kept"] < full["kept"] / 2
    shared = numbers["shared(base=sign(), per='group', how='mean')"]
    assert (shared["unit_recall"], full["unit_recall"]) == (1, None)
    (curve,) = curves
    findings = Findings(curve)
    assert not findings.compared("real", "oracle") and not curve.observed
    for text in accuracy(curves, as_json=False)[1:]:
        assert text["recall"] and text["mass"] and text["note"] == "k covers the whole context"
    page = write_report(tmp_path).read_text()
    assert page.count("<td>k covers the whole context</td>") == len(specs)
    body = page.partition("<script")[0]
    assert '<th scope="col">recall of the list</th>' in body and ">nan" not in body
    assert not list((tmp_path / "figures").glob("*fidelity*"))


def test_without_a_cap_what_is_said_beyond_the_length_has_none(tmp_path):
    """A wrong answer goes on behind the prompt, which fills the length."""
    seen.clear()
    run(tmp_path, notes_k(), k="100%", samples=1, dense=False)
    assert max(length for length, _ in seen) > LENGTH
    assert all(k >= length for length, k in seen)


seen: list[tuple[int, int]] = []


@dataclass(frozen=True)
class notes_k(Stateless):
    """The first slot alone."""

    def choose(self, queries, k, step, length):
        seen.append((length, k))
        return Selection(torch.zeros(*queries.shape[:3], 1, dtype=torch.long))


def test_dense_says_what_generate_says(tmp_path):
    model, tokenizer = reference()
    tasks = [make_task("niah-word", questions=2, distractors=6), TASK]
    rows = run(tmp_path, samples=1, tasks=tasks)  # type: ignore[arg-type]
    for task, name in zip(tasks, ("niah-word", "niah-multikey"), strict=True):
        prompt = task.sample(tokenizer, LENGTH, 0, seed=0)
        for number, question in enumerate(prompt.questions):
            ids = torch.tensor([[*prompt.ids, *question.ids]])
            count = len(question.answer_ids) + 10
            out = model.generate(ids, max_new_tokens=count, do_sample=False)
            (row,) = [r for r in rows if r["task"].startswith(name) and r["question"] == number]
            words = tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)
            assert row["said"] == words.partition("\n")[0]
            assert row["said_until"] == ("stop" if "\n" in words else "budget")


@pytest.mark.slow
def test_chance_answers_nothing_and_lightning_answers(tmp_path):
    rows = run(tmp_path, ["random", "lightning:dtype=fp8"], k=32, samples=3)
    assert not any(r["exact_match"] for r in of(rows, "random()"))
    trained = of(rows, "lightning(weights='reference', dtype='fp8')")
    assert sum(r["exact_match"] for r in trained) >= 5
    fidelity = pq.read_table(tmp_path / "fidelity").to_pylist()
    recall = {
        level: [
            r["recall"] for r in fidelity if "lightning" in r["indexer"] and r["level"] == level
        ]
        for level in ("head", "layer")
    }
    # Questions, layers, heads; the steps of the question and of the answer.
    assert len(recall["head"]) == 6 * 8 * 6 * 2
    assert len(recall["layer"]) == 6 * 8 * 2
    assert 0.2 < sum(recall["head"]) / len(recall["head"]) < 0.9


@pytest.mark.slow
def test_a_rerun_adds_what_is_missing(tmp_path):
    whole = run(tmp_path / "whole", ["sign", "exact"], k=[4, 16], samples=3)
    run(tmp_path / "parts", "sign", k=[4], samples=1)
    run(tmp_path / "parts", ["sign", "exact"], k=[4], samples=2)
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "parts").glob("*/*.parquet")}
    rows = run(tmp_path / "parts", ["sign", "exact"], k=[4, 16], samples=3)
    assert before == {p: p.stat().st_mtime_ns for p in before}
    same(rows, whole)
    lines = (tmp_path / "parts" / "predictions.jsonl").read_text().splitlines()
    assert [json.loads(line)["prediction"] for line in lines] == [r["said"] for r in rows]
    held = json.loads((tmp_path / "parts" / "run.json").read_text())
    assert [a["samples"] for a in held["asked"]] == [1, 2, 3]
    assert held["commit"] == commit(Path(topkit.__file__).parents[1])
    accuracy = next((tmp_path / "parts" / "accuracy").glob("*.parquet"))
    accuracy.unlink()
    same(run(tmp_path / "parts", ["sign", "exact"], k=[4, 16], samples=3), whole)


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_the_commit_is_that_of_the_checkout(tmp_path):
    def git(*words):
        who = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false")
        asked = ["git", "-C", tmp_path, *who, *words]
        return subprocess.run(asked, check=True, capture_output=True, text=True).stdout.strip()

    assert commit(tmp_path) is None
    git("init", "-q")
    assert commit(tmp_path) is None
    (tmp_path / "file").write_text("one")
    git("add", "file")
    git("commit", "-qm", "one")
    git("tag", "-am", "v1", "v1")
    assert commit(tmp_path) == git("rev-parse", "HEAD")
    (tmp_path / "file").write_text("two")
    assert commit(tmp_path) == git("rev-parse", "HEAD") + "-dirty"
    (tmp_path / "packages").mkdir()
    assert commit(tmp_path / "packages") is None


def test_one_run_at_a_time_writes_to_a_folder(tmp_path):
    """Whoever comes second is refused, may look, and leaves what the first is writing alone."""
    half = tmp_path / "accuracy" / ".part.parquet.1.tmp"
    plan: Any = planned(tmp_path)
    identity = plan.request.identity
    with claim(tmp_path, identity):
        run_id = describe(tmp_path, identity)
        orphan = write_part(tmp_path / "fidelity", "part", pa.table({"x": [1]}), run=run_id)
        half.parent.mkdir()
        half.touch()
        for force in (False, True):
            with pytest.raises(InputError, match="another run is writing to"):
                run(tmp_path, samples=1, force=force)
        with pytest.raises(InputError, match="another run is writing to"):
            topkit.run(plan)
        assert half.exists() and orphan.exists()
    assert run(tmp_path, samples=1)
    assert not half.exists() and not orphan.exists()


@pytest.mark.slow
def test_workers_give_the_same_rows(tmp_path):
    alone = run(tmp_path / "a", "sign", k=8)
    shared = run(tmp_path / "b", "sign", k=8, jobs=2)
    same(alone, shared)


@pytest.mark.slow
def test_small_batches_give_the_same_rows(tmp_path):
    """As far as the sums of other shapes are rounded alike; see `test_another_batch_size_is_another_run`."""
    together = run(tmp_path / "a", ["sign", "quest", "exact"], k=8)
    apart = run(tmp_path / "b", ["sign", "quest", "exact"], k=8, batch_size=2)
    same(together, apart)


@pytest.mark.slow
def test_codes_held_once_for_all_rows_give_the_rows_of_copies(tmp_path, monkeypatch):
    specs = [
        "magicpig",
        "misa",
        "loki",
        "rabitq:rerank=True",
        "sparq",
        "tactic",
        "clusterkv:update=4",
        *("quest", "moba", "infllm", "hisa:page_size=16,pages=4", "twilight", "snapkv:window=8"),
        *("h2o", "retrieval_attention:ef=16", "previous(quantized())", "tidaldecode(quantized())"),
    ]
    copied = run(tmp_path / "a", specs, k=16)
    monkeypatch.setattr(built, "COPIED", 0)
    same(copied, run(tmp_path / "b", specs, k=16))


@pytest.mark.slow
def test_killed_and_resumed_gives_the_same_rows(tmp_path):
    call = (
        "import sys; from topkit.experiments.evaluate.evaluate import evaluate; "
        f"evaluate('reference', {TASK!r}, {LENGTH}, 6, ['sign', 'exact'], [4, 8], "
        "out=sys.argv[1])"
    )
    call = "from topkit.experiments.tasks.needles import MultiKey; " + call
    for pause in (4, 5):
        process = subprocess.Popen(
            [sys.executable, "-c", call, str(tmp_path / "run")],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        time.sleep(pause)
        process.send_signal(signal.SIGKILL)
        process.wait()
    resumed = run(tmp_path / "run", ["sign", "exact"], k=[4, 8], samples=6)
    same(resumed, run(tmp_path / "whole", ["sign", "exact"], k=[4, 8], samples=6))
    assert not list((tmp_path / "run").glob("*/.*.tmp"))


@pytest.mark.slow
def test_mass_is_estimated_of_weighted_lists_alone(tmp_path):
    """Beside them, in one batch, lists without weights have none."""
    run(tmp_path, ["sampled(sign())", "sign()", "shared(sign())"], k=8, samples=1)
    for row in pq.read_table(tmp_path / "fidelity").to_pylist():
        assert (row["mass_estimate"] is None) == ("sampled" not in row["indexer"])


@pytest.mark.slow
def test_each_query_on_request(tmp_path):
    run(tmp_path / "means", "sign", k=8, samples=1)
    run(tmp_path / "rows", "sign", k=8, samples=1, observe="rows")
    means = pq.read_table(tmp_path / "means" / "fidelity").to_pylist()
    each = pq.read_table(tmp_path / "rows" / "fidelity").to_pylist()
    for row in means[::7]:
        mine = [
            r["recall"]
            for r in each
            if all(r[n] == row[n] for n in ("steps", "question", "layer", "head", "level"))
        ]
        assert len(mine) == row["positions"]
        assert row["recall"] == pytest.approx(sum(mine) / len(mine))


def test_books_are_scored_by_nll(tmp_path):
    rows = run(tmp_path, "random", k=4, samples=1, tasks=make_task("books", tokens=64))
    assert {r["exact_match"] for r in rows} == {None}
    assert of(rows, "random()")[0]["nll"] > of(rows, "dense")[0]["nll"] + 0.5


def test_running_text_is_not_decoded(tmp_path, monkeypatch):
    """There is nothing to hold it against, and it would take a pass a token."""
    passes = []
    forward = answers.forward
    monkeypatch.setattr(answers, "forward", lambda *a: passes.append(a) or forward(*a))
    rows = run(tmp_path, "random", k=4, samples=1, tasks=make_task("books", tokens=64))
    assert len(passes) == 1
    assert {r["said"] for r in rows} == {""}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"samples": 0}, "samples"),
        ({"sparse_from": "prompt"}, "sparse_from"),
        ({"observe": "all"}, "observe"),
        ({"batch_size": 0}, "batch_size"),
        ({"dense": False}, "no indexer"),
        ({"indexers": "sihn", "k": 4}, "sign"),
        ({"indexers": "sign", "k": 0}, "k"),
        ({"tasks": make_task("niah-multikey", distractors=500)}, "longer length"),
        ({"indexers": "lightning:weights=/nowhere", "k": 4}, "nowhere"),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        run(tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("indexer", ["lightning", "keep(lightning(dtype='fp8'), sink=4)"])
def test_weights_made_for_another_model_are_refused(tmp_path, indexer):
    _, tokenizer = reference()
    with pytest.raises(InputError, match=r"another model than this Llama.*topkit train lightning"):
        evaluate(
            like_reference(), TASK, LENGTH, 1, indexer, 4, out=tmp_path / "run", tokenizer=tokenizer
        )
    assert not (tmp_path / "run").exists()


def test_weights_of_other_widths_are_refused(tmp_path):
    """A file that does not say which model it is for is held to the model's widths."""
    _, tokenizer = reference()
    held = load_weights("reference")
    metadata = {name: x for name, x in held.metadata.items() if name != "model"}
    spec = f"lightning(weights={str(save_weights(tmp_path, 'own', held.tensors, **metadata))!r})"
    assert run(tmp_path / "fits", spec, k=4, samples=1)
    small = like_reference(192)
    with pytest.raises(InputError, match="hidden of width 384; LlamaForCausalLM has 192"):
        evaluate(small, TASK, LENGTH, 1, spec, 4, out=tmp_path / "run", tokenizer=tokenizer)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_weights_know_their_model_in_any_dtype(tmp_path, dtype):
    model, tokenizer = load("reference", dtype=dtype)
    evaluate.plan(model, TASK, LENGTH, 1, "lightning", 4, out=tmp_path, tokenizer=tokenizer)


@pytest.mark.parametrize("indexer", ["random", "streaming_llm", "exact"])
def test_nan_in_a_weight_is_named_by_layer_and_head(tmp_path, indexer):
    model, tokenizer = load("reference")
    with torch.no_grad():
        model.model.layers[3].self_attn.v_proj.weight[64 + 5, 7] = torch.nan
    with pytest.raises(InputError, match="layer 3, head 1: values hold NaN or infinity"):
        evaluate(model, TASK, LENGTH, 1, indexer, 4, out=tmp_path, tokenizer=tokenizer)


@pytest.mark.parametrize("name", ["model.norm", "model.layers.7.mlp.down_proj"])
def test_nan_behind_all_attention_is_found_in_the_logits(tmp_path, name):
    model, tokenizer = load("reference")
    with torch.no_grad():
        model.get_submodule(name).weight.view(-1)[5] = torch.nan
    with pytest.raises(InputError, match="its logits hold NaN"):
        evaluate(model, TASK, LENGTH, 1, "exact", 4, out=tmp_path, tokenizer=tokenizer)


def test_rows_of_two_models_never_mix(tmp_path):
    run(tmp_path, samples=1)
    with pytest.raises(InputError, match="seed"):
        run(tmp_path, samples=1, seed=1)
    (tmp_path / "study.json").write_text("{}")
    assert run(tmp_path, samples=1, seed=1, force=True)
    assert not (tmp_path / "study.json").exists()  # it told of what is gone


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("config.json", {"rope_parameters": {"rope_type": "default", "rope_theta": 77777.0}}),
        ("config.json", {"rms_norm_eps": 1e-2}),
        ("generation_config.json", {"eos_token_id": [1, 7]}),
        ("tokenizer_config.json", {"eos_token": "a"}),
    ],
)
def test_the_same_weights_under_another_config_are_another_model(tmp_path, file, change):
    """RoPE, norms, and what ends an answer stand in no tensor, and make other rows."""
    folder, out = tmp_path / "model", tmp_path / "run"
    shutil.copytree(REFERENCE, folder)
    few: Any = dict(samples=1, tasks="niah-single", lengths=128, out=out)
    first = evaluate(str(folder), **few)
    assert evaluate(str(folder), **few).equals(first)
    said = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps(said | change))
    what = "tokenizer" if "tokenizer" in file else "config"
    with pytest.raises(InputError, match=rf"holds another run \({what} differ\)"):
        evaluate(str(folder), **few)
    (folder / file).write_text(json.dumps(said | {"transformers_version": "5.0.0"}))
    assert evaluate(str(folder), **few).equals(first)  # what no number depends on


def test_another_batch_size_is_another_run(tmp_path):
    """Matrices of other shapes are summed in another order, by which close scores change places."""
    run(tmp_path, samples=1)
    with pytest.raises(InputError, match="batch_size"):
        run(tmp_path, samples=1, batch_size=64)
    assert run(tmp_path, samples=1, batch_size=128)  # the default, which no memory changes


def test_a_length_too_short_for_one_haystack_is_refused_before_any(tmp_path):
    """The first fits, another does not; `test_what_is_refused_deletes_nothing_by_force` has its sibling."""
    model, tokenizer = reference()
    task, given = "niah-multikey:wording=trained", {"out": tmp_path / "run", "tokenizer": tokenizer}
    assert evaluate.plan(model, task, 1200, 1, **given).rows == 4
    with pytest.raises(InputError, match=r"in haystack [1-9]\d*, .* longer length, of"):
        evaluate(model, task, 1200, 16, **given)
    assert not (tmp_path / "run").exists()


def test_haystacks_that_a_cell_lacks_are_said_to_be_left_out(tmp_path):
    run(tmp_path, "sign", k=8, samples=1)
    assert not left_out(load_curves(tmp_path))
    run(tmp_path, samples=2)
    curves = load_curves(tmp_path)
    assert [line.split(": ")[-1].split(",")[0] for line in left_out(curves)] == [
        "1 of 2 haystacks are left out"
    ]
    counts = ("haystacks", "haystacks_left_out", "questions")
    assert [[row[n] for n in counts] for row in accuracy(curves, True)] == [[1, 1, 2]] * 2


@pytest.mark.slow
def test_the_answer_alone_is_observed_as_beside_the_question(tmp_path):
    for observe in (True, "answer"):
        run(tmp_path / str(observe), ["sign", "exact"], k=8, samples=1, observe=observe)
    whole, alone = (pq.read_table(tmp_path / n / "fidelity") for n in ("True", "answer"))
    assert set(whole["steps"].to_pylist()) == {"question", "answer"}
    of_answer = whole.filter(pc.field("steps") == "answer")
    by = [(name, "ascending") for name in ("indexer", "question", "layer", "head")]
    assert alone.sort_by(by).equals(of_answer.sort_by(by))
    accuracy = (pq.read_table(tmp_path / n / "accuracy").to_pylist() for n in ("True", "answer"))
    same(*accuracy)


@pytest.mark.slow
def test_steps_of_the_question_are_observed_as_the_answers_are(tmp_path):
    """Where they go through the selector: each position once, one after the other."""
    _, tokenizer = reference()
    prompt = TASK.sample(tokenizer, LENGTH, 0, seed=0)
    for sparse_from in ("question", "answer"):
        out = tmp_path / sparse_from
        run(out, "sign", k=8, samples=1, observe="rows", sparse_from=sparse_from)
        rows = pq.read_table(out / "fidelity").to_pylist()
        for number, question in enumerate(prompt.questions):
            first, last = len(prompt.ids), len(prompt.ids) + len(question.ids) - 1
            steps = {"answer": list(range(last, last + len(question.answer_ids)))}
            if sparse_from == "question":
                steps["question"] = list(range(first, last))
            some = [r for r in rows if (r["question"], r["layer"], r["head"]) == (number, 3, 2)]
            positions = {n: [r["position"] for r in some if r["steps"] == n] for n in steps}
            assert positions == steps
            assert len(some) == sum(map(len, steps.values()))
            assert all(r["visible"] == r["position"] + 1 and r["kept"] == 8 for r in some)


def test_a_model_that_changed_on_disk_is_loaded_anew(tmp_path):
    shutil.copytree(REFERENCE, tmp_path / "model")
    first, _ = load_once(str(tmp_path / "model"), None, None)
    assert load_once(str(tmp_path / "model"), None, None)[0] is first
    with torch.no_grad():
        first.model.norm.weight[0] += 1
    first.save_pretrained(tmp_path / "model")
    again, _ = load_once(str(tmp_path / "model"), None, None)
    assert again is not first
    assert torch.equal(again.model.norm.weight, first.model.norm.weight)


def spoil_norm(folder):
    """Another model in the place of the first, by what its last norm weighs."""
    weights = folder / "model.safetensors"
    tensors = load_file(weights)
    tensors["model.norm.weight"] = tensors["model.norm.weight"] + 1
    save_file(tensors, weights, {"format": "pt"})


@pytest.mark.parametrize("jobs", [1, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize("what", ["weights", "tokenizer", "text"])
def test_what_changes_between_plan_and_job_is_refused_by_name(tmp_path, what, jobs):
    model, text = tmp_path / "model", tmp_path / "text.txt"
    shutil.copytree(REFERENCE, model)
    text.write_text("The hull was old. The cook was older. Nobody spoke of it. " * 40)
    plan = evaluate.plan(
        model, TASK, LENGTH, 2, "sign", 8, out=tmp_path / "run", text=text, jobs=jobs
    )
    if what == "weights":
        spoil_norm(model)
    elif what == "tokenizer":
        file = model / "tokenizer.json"
        content = json.loads(file.read_text())
        content["added_tokens"].append(
            {**content["added_tokens"][0], "id": 4096, "content": "<another>"}
        )
        file.write_text(json.dumps(content))
    else:
        text.write_text("The mast was new. The boy was newer. All spoke of it. " * 40)
    with pytest.raises(InputError, match=f"{what} changed while the run went on"):
        topkit.run(plan)
    assert not list((tmp_path / "run").rglob("*.parquet"))


def test_a_model_of_this_process_that_changed_after_its_plan_is_refused(tmp_path):
    model, tokenizer = load(REFERENCE)
    plan = evaluate.plan(model, TASK, LENGTH, 1, "sign", 8, out=tmp_path, tokenizer=tokenizer)
    with torch.no_grad():
        model.model.norm.weight += 1
    with pytest.raises(InputError, match="weights changed while the run went on"):
        topkit.run(plan)


def test_what_is_asked_twice_is_done_once(tmp_path):
    plan = planned(tmp_path, samples=3, tasks=[TASK, TASK], lengths=[LENGTH, LENGTH])
    assert len(plan.jobs) == 3


def everything(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow
@pytest.mark.parametrize("force", [False, True])
def test_a_plan_deletes_nothing(tmp_path, force):
    """Not even what a run beside it has just begun: fidelity is written before accuracy."""
    run(tmp_path, "sign", k=8, samples=1)
    next((tmp_path / "accuracy").glob("*.parquet")).unlink()
    for half in (".run.json.1.tmp", "accuracy/.x.parquet.1.tmp"):
        (tmp_path / half).touch()
    before = everything(tmp_path)
    planned(tmp_path, "sign", 8, force=force)
    assert everything(tmp_path) == before
    run(tmp_path, "sign", k=8, samples=1)
    assert not list(tmp_path.rglob(".*.tmp"))


@pytest.mark.slow
def test_a_plan_counts_what_is_there(tmp_path):
    out = tmp_path / "run"
    plan = planned(out, "sign", 8, samples=2)
    assert not out.exists()
    assert plan.lines() == ["2 jobs, 0 of them done: 2 haystacks of each task and length, 2 cells"]
    assert plan.rows == 2 * 2 * 2
    assert plan.memory > sum(x.numel() * 4 for x in reference()[0].parameters())
    run(out, "sign", k=8, samples=1)
    for force, done in ((False, 1), (True, 0)):
        plan = planned(out, "sign", 8, samples=2, force=force)
        assert (len(plan.jobs), plan.done) == (2 - done, done)
        assert plan.lines()[0].startswith(f"2 jobs, {done} of them done")
    with pytest.raises(InputError, match="holds another run"):
        planned(out, "sign", 8, seed=1)
    assert planned(out, "sign", 8, seed=1, force=True).done == 0


@pytest.mark.slow
def test_the_stated_rows_and_bytes_are_those_written(tmp_path):
    """Rows to the last, bytes within a factor of 2: they depend on what Parquet makes of them."""
    for observe in (True, "rows"):
        plan = planned(tmp_path, ["sign", "quest"], [4, 16], samples=2, observe=observe)
        table = topkit.run(plan)
        assert table.num_rows == plan.rows
        written = sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file())
        assert written / 2 < plan.bytes < 2 * written
        shutil.rmtree(tmp_path)


def test_a_run_tells_each_job(tmp_path):
    events = []
    topkit.run(planned(tmp_path, samples=2), progress=events.append)
    assert [(e.verb, e.done, e.jobs) for e in events] == [("evaluating", n, 2) for n in range(3)]


@pytest.mark.slow
def test_the_condensed_tables_stand_for_a_finished_run(tmp_path):
    run(tmp_path, "sign", k=8)
    whole = condensed(tmp_path)
    for table in ("accuracy", "fidelity"):
        shutil.rmtree(tmp_path / table)
    assert [a.equals(b) for a, b in zip(condensed(tmp_path), whole, strict=True)] == [True, True]


@pytest.mark.slow
def test_force_takes_the_condensed_tables_with_the_rows(tmp_path):
    run(tmp_path, "sign", k=8)
    with claim(tmp_path, {}, force=True):
        pass
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == [".lock"]
    with pytest.raises(InputError, match="holds no run"):
        condensed(tmp_path)


def test_arguments_of_0_1_still_work_and_warn_once(tmp_path):
    plans = []
    model, tokenizer = reference()
    old: dict = {"dry_run": True, "quiet": True, "on_plan": plans.append}
    options = {"out": tmp_path / "run", "tokenizer": tokenizer, **old}
    with pytest.warns(FutureWarning) as warned:
        assert evaluate(model, TASK, LENGTH, 3, "sign", 8, **options) is None
    assert len(warned) == 1
    assert (plans[0]["jobs"], plans[0]["haystacks"], plans[0]["lengths"]) == (3, 3, [LENGTH])
    assert not (tmp_path / "run").exists()


def test_what_is_refused_deletes_nothing_by_force(tmp_path):
    run(tmp_path, samples=1)
    before = everything(tmp_path)
    tasks = [TASK, make_task("niah-multikey", distractors=500)]
    with pytest.raises(InputError, match="longer length"):
        run(tmp_path, tasks=tasks, force=True)  # type: ignore[arg-type]
    assert everything(tmp_path) == before
