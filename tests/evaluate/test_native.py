"""Models with an indexer of their own, evaluated: its lists are a cell, which says what `generate` says."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

import topkit
from awkward import tokenizer
from own_indexers import OWN, with_indexer
from tiny import tiny
from topkit.errors import InputError
from topkit.experiments.capture.from_model import capture_passages
from topkit.experiments.capture.prompts import Passage
from topkit.experiments.runs.parts import read_table
from topkit.experiments.tasks.base import Planted, Question, Task
from topkit.experiments.tasks.encoding import begun
from topkit.experiments.train.lightning import export_weights

LENGTH, OWN_K = 260, 24


@dataclass(frozen=True)
class Talk(Task):
    """Asks random models for something, and lets them go on for a while."""

    name: ClassVar[str] = "talk"
    stop: ClassVar[tuple[str, ...]] = ()
    tokens_to_generate: ClassVar[int | None] = 14
    rule: ClassVar[str] = "all"

    questions: int = 3

    def plant(self, rng: np.random.Generator, wording: str) -> Planted:
        digits = [str(rng.integers(10, 99)) for _ in range(self.questions)]
        asked = (Question(f"\nWhich is it of {d}? {d}=", f"{d}{d}", ("e", d)) for d in digits)
        return Planted(("The letters are e and t.",), tuple(asked))


def model_of(kind: str, vocabulary: int, **changes: Any) -> Any:
    shape = dict(vocab_size=vocabulary, max_position_embeddings=2048, index_topk=OWN_K)
    return with_indexer(kind, **{**shape, **changes})


@torch.no_grad()
def generated(model: Any, ids: list[int], most: int) -> list[int]:
    given = torch.tensor([ids])
    out = model.generate(
        given, attention_mask=torch.ones_like(given), max_new_tokens=most, do_sample=False
    )
    return out[0, len(ids) :].tolist()


def words(made: Any, ids: list[int]) -> str:
    """Up to the end of the turn."""
    end = ids.index(made.eos_token_id) if made.eos_token_id in ids else len(ids)
    return made.decode(ids[:end], skip_special_tokens=True)


# With one index head most lists end between scores that are equal.
CASES = [
    *((kind, "question", 16) for kind in OWN),
    ("glm_moe_dsa", "answer", 16),
    ("deepseek_v32", "question", 1),
    ("glm_moe_dsa", "answer", 1),
]


@pytest.mark.parametrize(("kind", "sparse_from", "heads"), CASES)
def test_its_own_lists_say_what_generate_says(
    kind: str, sparse_from: str, heads: int, tmp_path: Path
) -> None:
    made = tokenizer("byte level")
    model, task = model_of(kind, len(made), index_n_heads=heads), Talk()
    given: dict[str, Any] = dict(tokenizer=made, observe=False, sparse_from=sparse_from)
    asked = ["native", "exact"], [5, OWN_K]
    rows = topkit.evaluate(model, task, LENGTH, 1, *asked, out=tmp_path, **given)
    said: dict[str, list[str]] = {}
    for row in rows.to_pylist():
        said.setdefault(f"{row['indexer']} {row['budget']}".strip(), []).append(row["said"])
        if (row["indexer"], row["budget"]) == ("native()", str(OWN_K)):
            prompt = task.sample(made, LENGTH, row["haystack"])
            ids = begun(made, prompt.text + prompt.questions[row["question"]].text)
            own = generated(model, ids, prompt.most(row["question"]))
            assert row["said"] == words(made, own)
    cells = ["dense", *(f"{name} {k}" for name in ("exact()", "native()") for k in (5, OWN_K))]
    assert sorted(said) == sorted(cells)
    assert said[f"native() {OWN_K}"] != said["native() 5"]
    assert said[f"native() {OWN_K}"] != said["dense"]


@pytest.mark.slow
@pytest.mark.parametrize("sparse_from", ["question", "answer"])
def test_other_cells_say_what_an_attached_model_says(sparse_from: str, tmp_path: Path) -> None:
    """Behind a prefix of the model's own: full attention, less of each list, and recipes in its place."""
    made = tokenizer("byte level")
    model, task = model_of("glm_moe_dsa", len(made)), Talk(questions=1)
    weights = f"lightning(weights={str(export_weights(model, tmp_path))!r})"
    again = f"reuse({weights}, layers=(0, 2))"
    specs = ["native", "sign", "reuse(native(), every=2)", again]
    given: dict[str, Any] = dict(tokenizer=made, observe=False, sparse_from=sparse_from)
    rows = topkit.evaluate(model, task, LENGTH, 1, specs, 5, out=tmp_path / "run", **given)
    prompt = task.sample(made, LENGTH, 0)
    ids = begun(made, prompt.text + prompt.questions[0].text)
    slot = len(prompt.ids) if sparse_from == "question" else len(ids) - 1
    said = {(row["indexer"], row["budget"]): row["said"] for row in rows.to_pylist()}
    assert len(said) == 6 and len(set(said.values())) > 3
    for (spec, k), text in said.items():
        recipe, budget = ("exact", 1000) if spec == "dense" else (spec, int(k))
        with topkit.attach(model, recipe, budget, sparse_from_slot=slot):
            assert text == words(made, generated(model, ids, 14)), spec
    # The same lists by the same formula, and where they are reused the very same.
    assert said["reuse(base=native(), every=2, layers=())", "5"] == said["native()", "5"]
    assert [said[name, "5"] for name, _ in said if "lightning" in name] == [said["native()", "5"]]


@pytest.mark.slow
def test_rows_that_end_leave_the_index_of_those_that_talk(tmp_path: Path) -> None:
    """Answers of several questions, which end at different places, are those of each alone."""
    made = tokenizer("byte level")
    model, task = model_of("glm_moe_dsa", len(made)), Talk(questions=5)
    prompt = task.sample(made, LENGTH, 0)
    firsts = [
        generated(model, begun(made, prompt.text + q.text), 14)[2 * n]
        for n, q in enumerate(prompt.questions)
    ]
    model.generation_config.eos_token_id = sorted({1, *firsts[1:]})
    given: dict[str, Any] = dict(tokenizer=made, observe=False)
    together = topkit.evaluate(model, task, LENGTH, 1, "native", OWN_K, out=tmp_path / "a", **given)
    alone = topkit.evaluate(
        model, task, LENGTH, 1, "native", OWN_K, out=tmp_path / "b", batch_size=2, **given
    )
    columns = ["indexer", "budget", "question", "said", "said_tokens"]
    assert together.select(columns).equals(alone.select(columns))
    lengths = {r["said_tokens"] for r in together.to_pylist() if r["indexer"] == "native()"}
    assert len(lengths) > 1


def test_fidelity_is_of_the_lists_that_it_attends_to(tmp_path: Path) -> None:
    """Exact at the whole length keeps all mass; its own lists less; and at every layer, shared ones too."""
    made = tokenizer("byte level")
    model = model_of("glm_moe_dsa", len(made))
    given: dict[str, Any] = dict(tokenizer=made, observe="rows", out=tmp_path)
    topkit.evaluate(model, Talk(questions=2), LENGTH, 1, "native", [5, 1000], **given)
    rows = read_table(tmp_path / "fidelity").to_pylist()
    assert {row["layer"] for row in rows} == {0, 1, 2, 3}
    assert {row["budget"] for row in rows} == {"5", str(OWN_K)}
    whole = [row for row in rows if row["budget"] != "5" and row["level"] == "head"]
    part = [row for row in rows if row["budget"] == "5" and row["level"] == "head"]
    assert len(whole) == len(part) > 0
    masses = [np.mean([row["mass"] for row in some]) for some in (part, whole)]
    assert 0 < masses[0] < masses[1] < 1


def test_layers_without_a_list_attend_to_all_keys(tmp_path: Path) -> None:
    made = tokenizer("byte level")
    kinds = ["indexed_attention", "full_attention"]
    model = model_of(
        "dots3_note_text", len(made), num_hidden_layers=2, layer_types=kinds, per_layer_config={}
    )
    task = Talk(questions=2)
    rows = topkit.evaluate(
        model, task, LENGTH, 1, "native", OWN_K, out=tmp_path, tokenizer=made
    ).to_pylist()
    prompt = task.sample(made, LENGTH, 0)
    for row in rows:
        if row["indexer"] == "native()":
            ids = begun(made, prompt.text + prompt.questions[row["question"]].text)
            assert row["said"] == words(made, generated(model, ids, prompt.most(row["question"])))
    assert set(read_table(tmp_path / "fidelity")["layer"].to_pylist()) == {0}


def test_a_run_of_other_lists_is_another_run(tmp_path: Path) -> None:
    """The weights are the same, and so is the cell's name."""
    made = tokenizer("byte level")
    given: dict[str, Any] = dict(tokenizer=made, observe=False, out=tmp_path / "run")
    topkit.evaluate(model_of("axk2", len(made)), Talk(questions=1), LENGTH, 1, **given)
    other = model_of("axk2", len(made), index_topk=12)
    with pytest.raises(InputError, match="index_topk"):
        topkit.evaluate(other, Talk(questions=1), LENGTH, 1, **given)
    passages = [Passage(range(2, 40), [37])]
    capture_passages(model_of("axk2", len(made)), passages, origin={}, out=tmp_path / "capture")
    with pytest.raises(InputError, match="index_topk"):
        capture_passages(other, passages, origin={}, out=tmp_path / "capture")


def test_a_model_without_an_indexer_is_refused(tmp_path: Path) -> None:
    made = tokenizer("byte level")
    model = tiny("llama", vocab_size=len(made), max_position_embeddings=2048, head_dim=8)
    with pytest.raises(InputError, match=r"native\(\) keeps what .* LlamaForCausalLM has none"):
        topkit.evaluate(model, Talk(), LENGTH, 1, "native", 8, out=tmp_path / "run", tokenizer=made)
    assert not (tmp_path / "run").exists()
