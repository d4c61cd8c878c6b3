"""Token steps of all fixed rows give the rows that whole passes give, kernel by kernel."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from transformers import AutoTokenizer

import topkit
from tiny import EXPERTS, READS_REFERENCE, lightning_for, tiny
from topkit.errors import InputError
from topkit.experiments.decode.graph_capture import CannotCapture
from topkit.experiments.evaluate import answers
from topkit.experiments.evaluate.stepped import fixed_rows, groups, token_steps
from topkit.experiments.evaluate.stepped.fixed_layer import Layer
from topkit.experiments.evaluate.stepped.graphed import refuse
from topkit.experiments.model.load import REFERENCE
from topkit.experiments.runs.cells import parse_cells
from topkit.experiments.runs.parts import read_table
from topkit.experiments.tasks import make_task
from topkit.indexers import Selection, lightning_weights
from topkit.indexers.stateless import Stateless
from topkit.indexers.traits import Traits
from topkit.kernels.gather_attention import PLAIN

TASK = make_task("niah-multikey", questions=2, distractors=2)
# FAISS makes these lists; steps probe them.
LISTS = (
    "faiss_ivf(nlist=16, nprobe=3)",
    "faiss_ivf(nlist=12, nprobe=2, center=True, hadamard=True)",
    "keep(faiss_ivf(nlist=16, nprobe=2, center=True), sink=2, window=1)",
)
FIXED = (
    "degraded(0.6)",
    "degraded(0.8, miss='boundary', fill='next')",
    "degraded(0.5, miss='page', fill='recent', persist='stream', per='group')",
    "exact()",
    "exact_group(shared(sign()), layer=1, group=1)",
    "keep(refine(sign(), factor=2), sink=1, window=1)",
    "moba(page_size=4)",
    "quantized(dtype='int4', center=True)",
    "quantized(dtype='mxfp4', hadamard=True)",
    "quantized(dtype='nvfp4', center=True)",
    "quest(page_size=4)",
    "random()",
    "reuse(sign(), every=2)",
    "keep(reuse(shared(quantized(dtype='int4')), every=2), sink=1)",
    "refine(sign(), factor=4)",
    "shared(quantized(dtype='int8'), per='layer')",
    "sign(hadamard=True)",
    "streaming_llm(sink=4, window=16)",
    "top_p(quantized(dtype='int4'), mass=0.9)",
    "sampled(quantized(dtype='int4'))",
    *(LISTS if find_spec("faiss") else ()),
)
HOSTED = ("pqcache(m=2, b=3)", *(["faiss_sq(bits=8)"] if find_spec("faiss") else []))
OTHERS = ("lightning(weights='given')", "retroinfer()", "sparq()")


def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(REFERENCE)


def model(**changes: Any) -> Any:
    return tiny("llama", **{**READS_REFERENCE, "max_position_embeddings": 1024, **changes})


def run(
    monkeypatch: Any, out: Path, made: Any, specs: Any, k: Any, on: bool, **how: Any
) -> tuple[list[dict], Any]:
    """The rows of accuracy, and of fidelity, in one order."""
    monkeypatch.setattr(groups, "_can_capture", lambda _: on)
    given: dict[str, Any] = {"tokenizer": tokenizer(), "observe": "rows", **how}
    lengths, samples = given.pop("lengths", [300, 340]), given.pop("samples", 1)
    place = out / ("steps" if on else "passes")
    rows = topkit.evaluate(
        made, given.pop("task", TASK), lengths, samples, specs, k, out=place, **given
    ).to_pylist()
    names = ("indexer", "budget", "length", "haystack", "question")
    rows.sort(key=lambda row: tuple(row[name] for name in names))
    table = read_table(place / "fidelity")
    order = (*names, "steps", "position", "level", "layer", "head")
    return rows, table.sort_by([(name, "ascending") for name in order])


def same(ours: tuple[list[dict], Any], theirs: tuple[list[dict], Any]) -> None:
    near = 1e-5
    assert len(ours[0]) == len(theirs[0]) and ours[1].num_rows == theirs[1].num_rows > 0
    for a, b in zip(ours[0], theirs[0], strict=True):
        for name, x in a.items():
            if isinstance(x, float):
                assert x == pytest.approx(b[name], abs=near, nan_ok=True), (a["indexer"], name)
            else:
                assert x == b[name], (a["indexer"], name)
    for name, kind in zip(ours[1].schema.names, ours[1].schema.types, strict=True):
        a, b = (table[name].to_numpy() for table in (ours[1], theirs[1]))
        if pa.types.is_floating(kind):
            # An entropy's exponent has many roundings in it.
            each = 1e-3 if name == "support" else near
            assert np.allclose(a, b, rtol=1e-5, atol=each, equal_nan=True), name
        else:
            assert (a == b).all(), name


@pytest.mark.slow
@pytest.mark.parametrize("sparse_from", ["question", "answer"])
def test_rows_are_those_of_whole_passes(tmp_path: Path, monkeypatch: Any, sparse_from: str) -> None:
    """Of haystacks of two lengths, and so two seeds, in the same buffers."""
    made, count = model(), list[Any]()
    own = fixed_rows.FixedRows.__init__

    def counting(self: Any, *given: Any) -> None:
        count.append(self)
        own(self, *given)

    monkeypatch.setattr(fixed_rows.FixedRows, "__init__", counting)
    given: dict[str, Any] = {"sparse_from": sparse_from}
    both = [
        run(monkeypatch, tmp_path, made, [*FIXED, *HOSTED], [4, 12], on, **given)
        for on in (True, False)
    ]
    same(*both)
    # Steps of both lengths.
    assert [type(x).__name__ for x in count] == ["FixedRows", "HostedRows"]


@pytest.mark.slow
def test_inputs_of_the_layer_and_whole_budgets(tmp_path: Path, monkeypatch: Any) -> None:
    lightnings = [
        lightning_for(tmp_path, heads=2, dim=32, dtype=d) for d in ("fp8", "mxfp4", "fp32")
    ]
    given = (model(), [*lightnings, "sign()", "exact()"], [8, "100%"])
    ours, theirs = (
        run(monkeypatch, tmp_path, *given, on, lengths=300, samples=2) for on in (True, False)
    )
    same(ours, theirs)


@pytest.mark.parametrize("window", [64, 300, 600], ids="slides comes never".split())
def test_sliding_windows(tmp_path: Path, monkeypatch: Any, window: int) -> None:
    layers = ["sliding_attention", "full_attention"]
    changes = dict(sliding_window=window, use_sliding_window=True, layer_types=layers)
    made = tiny("qwen3", **{**READS_REFERENCE, "max_position_embeddings": 1024, **changes})
    given = (made, ["sign()", "exact()"], 8)
    ours, theirs = (run(monkeypatch, tmp_path, *given, on, lengths=300) for on in (True, False))
    same(ours, theirs)
    assert bool(token_steps._kept.get(made)) == (window != 300)


def softmaxed(kind: str, **more: Any) -> Any:
    """A model whose softmax has sinks, or a softcap."""
    changes = {"gpt_oss": EXPERTS, "gemma2": {"attn_logit_softcapping": 3.0}}[kind]
    both = ["full_attention"] * 2
    how = {**READS_REFERENCE, "max_position_embeddings": 1024, "layer_types": both, **changes}
    made = tiny(kind, **{**how, **more})
    for number, layer in enumerate(made.model.layers):
        if kind == "gpt_oss":
            layer.self_attn.sinks.data = torch.arange(4.0) - number
    made.set_attn_implementation("eager")  # others may leave a softcap out
    return made


@pytest.mark.parametrize(
    "kind", ["gpt_oss", pytest.param("gemma2", marks=pytest.mark.slow)], ids="sinks softcap".split()
)
def test_the_softmax_of_the_model(tmp_path: Path, monkeypatch: Any, kind: str) -> None:
    """And the mutant: steps that leave its sinks or its softcap out are noticed."""
    made = softmaxed(kind)
    given = (made, ["sign()", "exact()", "top_p(exact(), mass=0.6)", HOSTED[0]], [4, 500])
    theirs = run(monkeypatch, tmp_path, *given, False, lengths=300)
    same(run(monkeypatch, tmp_path, *given, True, lengths=300), theirs)
    assert token_steps._kept.pop(made)
    own = Layer.of.__func__  # type: ignore[attr-defined]
    monkeypatch.setattr(Layer, "of", lambda *some: replace(own(Layer, *some), softmax=PLAIN))
    mutant = run(monkeypatch, tmp_path / "mutant", *given, True, lengths=300)
    with pytest.raises(AssertionError):
        same(mutant, theirs)


@pytest.mark.slow
def test_batches_of_other_sizes_keep_their_own_steps(tmp_path: Path, monkeypatch: Any) -> None:
    made, task = model(), make_task("kv-recall", questions=3, distractors=2)
    given = (made, ["sign()", "exact()"], 8)
    how: dict[str, Any] = {"lengths": 300, "samples": 2, "batch_size": 6, "task": task}
    ours, theirs = (run(monkeypatch, tmp_path, *given, on, **how) for on in (True, False))
    same(ours, theirs)
    counts = sorted(steps.rows.count for steps in token_steps._kept[made].values())
    assert counts == [3, 6]


def test_which_cells_are_fixed() -> None:
    for spec in (*FIXED, "lightning(dtype='fp8')"):
        assert all(groups.is_fixed(cell) for cell in parse_cells([spec], [4], True)), spec
    for spec in (*HOSTED, *OTHERS, "lightning()"):
        (cell,) = parse_cells([spec], [4], False)
        assert not groups.is_fixed(cell), spec
        assert groups.is_hosted(cell, "question") == (spec not in OTHERS), spec
        assert groups.is_hosted(cell, "answer") == (spec in HOSTED), spec
    (cell,) = parse_cells(["exact()"], ["100%"], False)
    assert not groups.is_fixed(cell) and not groups.is_hosted(cell, "question")


@dataclass(frozen=True)
class twice(Stateless):
    """Says that it is fixed, and names a slot twice."""

    def traits(self) -> Any:
        return Traits(fixed=True)

    def choose(self, queries: Any, k: int, step: Any, length: int) -> Selection:
        shape = (*queries.shape[:3], 2)
        return Selection(torch.zeros(shape, dtype=torch.long, device=queries.device))


def test_what_is_wrong_is_said_by_the_recipes_name(tmp_path: Path, monkeypatch: Any) -> None:
    with pytest.raises(InputError, match=r"twice.*chose slot 0 twice"):
        run(monkeypatch, tmp_path, model(), [twice(), "sign()"], 4, True)


@pytest.mark.slow
def test_what_cannot_be_captured_runs_kernel_by_kernel(tmp_path: Path, monkeypatch: Any) -> None:
    made, specs = model(), ["exact()", "sign()"]

    def fail(*_: Any) -> None:
        raise RuntimeError("no graph holds this")

    plain = run(monkeypatch, tmp_path, made, specs, 4, False)
    monkeypatch.setattr(fixed_rows.FixedRows, "attend", fail)
    with pytest.warns(UserWarning, match="one kernel at a time.*no graph holds this"):
        same(run(monkeypatch, tmp_path, made, specs, 4, True), plain)


@pytest.mark.parametrize("captured", [False, True])
@pytest.mark.parametrize("full", [False, True])
def test_a_memory_that_was_full_is_tried_again(full: bool, captured: bool) -> None:
    """Also where a capture met it, which is given up with words alone."""
    made = model()
    error: Exception = RuntimeError("no graph")
    error = torch.OutOfMemoryError("CUDA out of memory.") if full else error
    if captured:
        cause, error = error, CannotCapture(str(error))
        error.__cause__ = cause
    with pytest.warns(UserWarning, match="one kernel at a time"):
        refuse(made, error)
    assert (made in groups.refused) == (not full)


@pytest.mark.slow
def test_weights_that_moved_are_not_read_where_they_stood(tmp_path: Path, monkeypatch: Any) -> None:
    made, specs = model(), ["exact()", "sign()"]
    run(monkeypatch, tmp_path / "a", made, specs, 4, True)
    with torch.no_grad():
        for part in made.parameters():
            part.data = part.data * 1.5
    given = (made, specs, 4)
    same(*(run(monkeypatch, tmp_path / "b", *given, on) for on in (True, False)))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_on_a_gpu_one_graph_serves_haystacks_of_two_lengths(
    tmp_path: Path, monkeypatch: Any, dtype: torch.dtype
) -> None:
    made = model(head_dim=64).to("cuda", dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        ours, theirs = (
            run(monkeypatch, tmp_path, made, [*FIXED, *HOSTED], [4, 12], on) for on in (True, False)
        )
    for steps in token_steps._kept[made].values():
        assert set(steps._graphs) == {groups.Way.SPARSE}
    assert len(ours[0]) == len(theirs[0]) and ours[1].num_rows == theirs[1].num_rows
    apart = {
        name: sum(
            abs(a - b) > 1e-4
            for a, b in zip(*(t[name].to_pylist() for t in (ours[1], theirs[1])), strict=True)
        )
        for name in ("recall", "mass")
    }
    print(apart)
    # A key that lies between two codes may be rounded to either.
    most = 0.002 if dtype == torch.float32 else 0.1
    assert max(apart.values()) <= most * ours[1].num_rows, apart
    for a, b in zip(ours[0], theirs[0], strict=True):
        assert a["nll"] == pytest.approx(b["nll"], abs=1e-3 if dtype == torch.float32 else 0.2), a


def in_shadow(rows: Any, shadow: bool) -> tuple[list[dict], Any]:
    return rows[0], rows[1].filter([one == shadow for one in rows[1]["shadow"].to_pylist()])


SHADOWED = [
    *("sign()", "shared(sign())", "exact_group(sign(), layer=1)", "quest(page_size=4)"),
    *("degraded(0.6)", "refine(sign(), factor=2)"),
]


def asked_in_passes(monkeypatch: Any) -> list[set[str]]:
    """To be filled with the recipes that each haystack asks in shadow by whole passes."""
    own, asked = answers.shadow_streams, list[set[str]]()

    def noting(*given: Any) -> Any:
        streams = own(*given)
        asked.append({str(stream.indexer) for stream in streams})
        return streams

    monkeypatch.setattr(answers, "shadow_streams", noting)
    return asked


@pytest.mark.slow
@pytest.mark.parametrize(
    ("observe", "sparse_from"),
    [("answer-rows", "question"), ("answer-rows", "answer"), ("rows", "question")],
)
def test_shadow_is_stepped_with_the_rows_of_whole_passes(
    tmp_path: Path, monkeypatch: Any, observe: str, sparse_from: str
) -> None:
    """And whole passes are left to what cannot be stepped."""
    how: dict[str, Any] = {"observe": observe, "shadow": True, "sparse_from": sparse_from}
    others = [HOSTED[0], "sparq()", "previous(sign())", "clusterkv(sink=2, update=4)"]
    specs, asked = [*SHADOWED, *LISTS[:1], *others], asked_in_passes(monkeypatch)
    made = model()
    both = [
        run(monkeypatch, tmp_path, made, specs, [4, 12], on, lengths=300, **how)
        for on in (True, False)
    ]
    cells = parse_cells(specs, [4], False)
    passes = {str(cell.indexer) for cell in cells if not groups.is_fixed(cell)}
    assert asked == [passes, {str(cell.indexer) for cell in cells}] and len(passes) == len(others)
    for shadow in (False, True):
        ours, theirs = (in_shadow(rows, shadow) for rows in both)
        same(ours, theirs)
        assert ours[1]["ws"].null_count < len(ours[1])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_answers_keys_and_shadow(tmp_path: Path, monkeypatch: Any) -> None:
    """Graphs' notes give the keys' columns that whole passes give, in shadow too."""
    made = model(head_dim=64).to("cuda")
    how: dict[str, Any] = {"observe": "answer-rows", "shadow": True, "lengths": 300}
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        both = [
            run(monkeypatch, tmp_path, made, [*SHADOWED, HOSTED[0]], [4, 12], on, **how)
            for on in (True, False)
        ]
    for shadow in (False, True):
        ours, theirs = (in_shadow(rows, shadow)[1] for rows in both)
        for name in ("hit", "w", "ws", "mass"):
            near, far = (t[name].to_numpy() for t in (ours, theirs))
            assert (np.isnan(near) == np.isnan(far)).all()
            assert (np.nan_to_num(abs(near - far)) > 1e-4).mean() <= 0.005, name


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_graphs_that_read_files_serve_all_haystacks(
    tmp_path: Path, monkeypatch: Any
) -> None:
    """What a trained indexer reads stands where it stood, though others take its place."""
    made, kept = model(head_dim=64).to("cuda"), list[Any]()
    own = token_steps.steps_of

    def noting(*given: Any) -> Any:
        for number in range(20):  # more than are kept
            lightning_weights._read(file, (number, 0, 0), "cuda:0")
        kept.append(own(*given))
        return kept[-1]

    monkeypatch.setattr("topkit.experiments.evaluate.stepped.graphed.steps_of", noting)
    spec = lightning_for(tmp_path, heads=2, dim=32, dtype="fp8")
    file = Path(spec.split("'")[1])
    given = (made, [spec, "exact()"], 8)
    how: dict[str, Any] = {"lengths": 300, "samples": 3}
    ours, theirs = (run(monkeypatch, tmp_path, *given, on, **how) for on in (True, False))
    assert len(kept) == 3 and len({id(one) for some in kept for one in some.values()}) == 1
    for name in ("recall", "mass"):
        near, far = (t[name].to_numpy() for t in (ours[1], theirs[1]))
        assert (abs(near - far) > 1e-4).mean() <= 0.005, name


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("kind", ["gpt_oss", "gemma2"], ids="sinks softcap".split())
def test_on_a_gpu_the_softmax_of_the_model(tmp_path: Path, monkeypatch: Any, kind: str) -> None:
    """Experts may be what no graph can hold: then steps run kernel by kernel, with a warning."""
    made = softmaxed(kind, head_dim=64).to("cuda")
    given = (made, ["sign()", "exact()", "top_p(sign(), mass=0.6)", HOSTED[0]], [4, 500])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore" if kind == "gpt_oss" else "error", UserWarning)
        ours, theirs = (run(monkeypatch, tmp_path, *given, on, lengths=300) for on in (True, False))
    graphs = [steps._graphs for steps in token_steps._kept.get(made, {}).values()]
    print(kind, [set(one) for one in graphs])
    assert kind == "gpt_oss" or graphs
    for a, b in zip(ours[0], theirs[0], strict=True):
        assert a["nll"] == pytest.approx(b["nll"], abs=1e-3), a
    for name in ("recall", "mass", "output_error"):
        near, far = (t[name].to_numpy() for t in (ours[1], theirs[1]))
        assert (abs(near - far) > 1e-3).mean() <= 0.005, name
