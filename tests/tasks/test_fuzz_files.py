"""Task files from strangers: one line, or prompts whose scores are shares; nothing said scores nothing."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from fuzz import TIMES, changed_bytes, changed_json, line_of
from topkit.experiments.model.load import load
from topkit.experiments.tasks import make_task, prompt, rule_of

FILES = 12 * TIMES
TEXT = {"title": "t", "text": "x"}
CHOICES = {f"choice_{letter}": letter for letter in "ABCD"}
# Task, file, whether it is a list, and a row.
FORMATS: list[tuple[str, str, bool, dict[str, Any]]] = [
    ("ruler", "niah_single_2/a.jsonl", False, {"input": "It is 7. Which?", "outputs": ["7"]}),
    ("longbench-v2", "a.json", True, {"context": "c", "question": "q", **CHOICES, "answer": "A"}),
    (
        "lost-in-the-middle",
        "kv.jsonl",
        False,
        {"ordered_kv_records": [["a", "b"]], "key": "a", "value": "b"},
    ),
    (
        "lost-in-the-middle",
        "qa.jsonl",
        False,
        {"question": "q", "answers": ["x"], "ctxs": [{"title": "t", "text": "x"}]},
    ),
    (
        "nolima",
        "set.json",
        True,
        {
            "id": "0001",
            "needle": "{CHAR} lives by the {1}.",
            "questions": {"one": "who saw {2}?"},
            "tests": {"T": {"input_args": ["a", "b"]}},
            "character_set": ["Yuki"],
        },
    ),
]


@pytest.mark.parametrize(("name", "file", "whole", "row"), FORMATS)
def test_task_files(tmp_path: Path, name: str, file: str, whole: bool, row: dict[str, Any]) -> None:
    draw, tokenizer, path = random.Random(8), load("reference")[1], tmp_path / file
    path.parent.mkdir(exist_ok=True)

    def asked() -> None:
        task = make_task(f"{name}:file={path}")
        for sample in range(min(task.most_samples() or 0, 3)):
            made = prompt(task, tokenizer, 1024, sample)
            rule, references = rule_of(made.rule), made.questions[0].references
            for said in ("x", "7 b A Yuki", "1 > 2"):
                assert 0 <= rule(said, references) <= 1
            # SQuAD's way leaves nothing of an article.
            assert made.rule == "first-line" or rule("", references) == 0

    for _ in range(FILES):
        rows = [changed_json(draw, row), row]
        text = json.dumps(rows) if whole else "\n".join(map(json.dumps, rows))
        for spoilt in (text.encode(), changed_bytes(draw, text.encode())):
            path.write_bytes(spoilt)
            line_of(asked)
