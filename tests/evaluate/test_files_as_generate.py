"""What full attention says to the rows of task files is what `generate` says to the formats' own prompts."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch

import topkit
from awkward import tokenizer
from tiny import tiny
from topkit.experiments.tasks import make_task, task_name

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}[{{ m.role }}] {{ m.content | trim }}</s>\n"
    "{% endfor %}{% if add_generation_prompt %}[assistant]\n{% endif %}"
)
BARE = TEMPLATE.replace(
    "{% for",
    "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}{% for",
)
LENGTH, TOKENS = 900, 9
INPUT = "Some special magic numbers are hidden here.\nIt was late. e t 7.\nWhat is the special magic number?"
DOCUMENTS = [{"title": "T", "text": "Words of e."}, {"title": "U", "text": "Words of t."}]
KILT = (
    "Use the given documents to write a concise and short answer to the question. Write your answer in the "
    "following format:\nAnswer: [answer]\n\nDocument (Title: T): Words of e.\n\nDocument (Title: U): Words "
    "of t.\n\nQuestion: Who?"
)
CHOICES = {f"choice_{letter}": f"it is {letter}" for letter in "ABCD"}
ITEM = {"context": "A text.", "question": "What?", "answer": "B", **CHOICES}
BENCH = (
    "Please read the following text and answer the question below.\n\n<text>\nA text.\n</text>\n\nWhat is the "
    "correct answer to this question: What?\nChoices:\n(A) it is A\n(B) it is B\n(C) it is C\n(D) it is D\n\n"
    'Format your response as follows: "The correct answer is (insert answer here)".'
)
LOST = (
    "Write a high-quality answer for the given question using only the provided search results (some of "
    "which might be irrelevant).\n\nDocument [1](Title: T) Words of e.\nDocument [2](Title: U) Words of t.\n\n"
    "Question: Who?\nAnswer:"
)
ROWS: dict[str, tuple[str, str, dict[str, Any], str, str, bool]] = {
    # task, file, row, what the user says, how the answer begins, whether it does so in chat
    "ruler": (
        "ruler",
        "niah_single_2/validation.jsonl",
        {"input": INPUT, "outputs": ["e", "t", "7"], "answer_prefix": " It is"},
        INPUT,
        " It is",
        True,
    ),
    "kilt": (
        "helmet:shots=0",
        "nq-dev.jsonl",
        {"question": "Who?", "answers": ["e", "t"], "ctxs": DOCUMENTS},
        KILT,
        "\nAnswer:",
        False,
    ),
    "longbench": ("longbench-v2", "data.jsonl", ITEM, BENCH, "", False),
    "lost": (
        "lost-in-the-middle",
        "qa.jsonl",
        {"question": "Who?", "answers": ["e", "t"], "ctxs": DOCUMENTS},
        LOST,
        "",
        False,
    ),
}


def loud(made: Any) -> Any:
    """A random model that often says the special tokens too."""
    model = tiny("llama", vocab_size=len(made), max_position_embeddings=2048, head_dim=8)
    with torch.no_grad():
        model.lm_head.weight[:3] *= 1.5
    return model


@torch.no_grad()
def generated(model: Any, made: Any, ids: list[int]) -> str:
    tensor = torch.tensor([ids])
    mask = torch.ones_like(tensor)
    out = model.generate(tensor, attention_mask=mask, max_new_tokens=TOKENS, do_sample=False)
    return made.decode(out[0, len(ids) :].tolist(), skip_special_tokens=True)


@pytest.mark.parametrize("kind", ["byte level", "always"])
@pytest.mark.parametrize("name", ROWS)
def test_full_attention_says_what_generate_says(tmp_path: Path, name: str, kind: str) -> None:
    task, file, row, user, cue, in_chat = ROWS[name]
    path = tmp_path / file
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"{json.dumps(row)}\n")
    made = copy.deepcopy(tokenizer(kind, "bos"))
    made.chat_template = TEMPLATE
    model = loud(made)
    tasks = [
        make_task(task, file=str(path), form=form, tokens=TOKENS) for form in ("plain", "chat")
    ]
    rows = topkit.evaluate(
        model,
        tasks,
        LENGTH,
        1,
        "exact",
        k="100%",
        out=tmp_path / "run",
        tokenizer=made,
        observe=False,
    ).to_pylist()
    assert len(rows) == 4
    for read in rows:
        ids = made(user + cue).input_ids
        if read["task"] == task_name(tasks[1]):
            turn = [{"role": "user", "content": user}]
            shown = str(made.apply_chat_template(turn, tokenize=False, add_generation_prompt=True))
            ids = made(shown + cue * in_chat, add_special_tokens=False).input_ids
        said = generated(model, made, ids)
        if name == "lost" and "\n" in said.lstrip():
            said = said[: said.index("\n", len(said) - len(said.lstrip()))]
        assert read["tokens"] == len(ids) and read["said"] == said, read["task"]
        right = [reference in said.lower() for reference in read["references"]]
        score = {"ruler": sum(right) / 3, "longbench": 0.0}.get(name, float(any(right)))
        assert read["score"] == pytest.approx(score)


@pytest.mark.parametrize("template", [TEMPLATE, BARE], ids=["system", "no system"])
def test_a_needle_set_has_its_own_system_turn(tmp_path: Path, template: str) -> None:
    needle = {
        "id": "0001",
        "system_prompt": "Be short.",
        "needle": "Tom saw the sea.",
        "questions": {"direct": "Who saw the sea?"},
        "tests": {"a": {"input_args": [], "gold_answers": "Tom"}},
        "task_template": "{haystack}\n\nQ: {question}",
    }
    path = tmp_path / "set.json"
    path.write_text(json.dumps([needle]))
    made = copy.deepcopy(tokenizer("byte level", "bos"))
    made.chat_template = template
    task = make_task("nolima", file=str(path), form="chat", tokens=TOKENS)
    prompt = task.sample(made, LENGTH, 3)
    text = str(made.decode([*prompt.ids, *prompt.questions[0].ids]))
    begins = (
        "<s>[system] Be short.</s>\n[user] " if template is TEMPLATE else "<s>[user] Be short.\n\n"
    )
    assert text.startswith(begins) and text.count("Be short.") == 1
    assert (
        text.endswith("\n\nQ: Who saw the sea?</s>\n[assistant]\n") and "Tom saw the sea." in text
    )
    assert prompt.tokens(0) + TOKENS <= LENGTH
    plain = make_task("nolima", file=str(path), tokens=TOKENS).sample(made, LENGTH, 3)
    assert plain.text.startswith("Be short.\n\n")


@pytest.mark.parametrize("name", ["ruler:task=niah_single_2", "ruler:task=cwe", "ruler"])
def test_worked_examples_stand_before_in_the_same_words(tmp_path: Path, name: str) -> None:
    rows = [
        {"input": f"{INPUT}{n}", "outputs": [f"{n}1"], "answer_prefix": " It is"} for n in range(3)
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    more = {"file": str(path)} if name == "ruler" else {}
    made = tokenizer("byte level", "bos")
    task = make_task(name, form="fewshot", shots=2, tokens=TOKENS, **more)
    prompt = task.sample(made, 8000, 1)
    (q,) = prompt.questions
    if name == "ruler":
        shown = [f"{INPUT}{n} It is {n}1\n\n" for n in (2, 0)]
        assert prompt.text + q.text == f"{''.join(shown)}{INPUT}1 It is"
    else:
        start = make_task(name).sample(made, 8000, 1).text[:60]
        # One of RULER's own stands before each list of words.
        assert prompt.text.count(start) == (3 if name.endswith("2") else 6)
        assert 7900 < prompt.tokens(0) + TOKENS <= 8000
        assert task.sample(made, 8000, 2).text != prompt.text
