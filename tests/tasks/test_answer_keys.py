"""Answer keys against the text: what a slot holds is what the answer says there."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from awkward import KINDS, tokenizer
from topkit.experiments.tasks import TASKS, Task, answer_keys, first_key, make_task
from topkit.experiments.tasks.base import Planted, Question

SMALL: dict[str, dict[str, Any]] = {
    "niah-multikey": {"distractors": 4},
    "niah-multiquery": {"distractors": 0, "questions": 1},
    "niah-multivalue": {"questions": 2},
    "niah-word": {"distractors": 2},
    "kv-recall": {"distractors": 12},
    "variable-tracking": {"distractors": 2},
    "recite": {"words": 12},
    "books": {"tokens": 32},
}
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}[{{ m.role }}] {{ m.content | trim }}</s>\n"
    "{% endfor %}{% if add_generation_prompt %}[assistant]\n{% endif %}"
)
LENGTH = 3000
# That of word pieces knows too few of the letters.
SPELLING = [kind for kind in KINDS if kind != "word piece"]
MADE = ("ruler:task=niah_single_2", "ruler:task=niah_multivalue", "ruler:task=niah_multikey_3")


def drawn(made: Any, name: str, length: int = LENGTH, sample: int = 0, **given: Any) -> Any:
    task = make_task(name, **(SMALL.get(name, {}) | given))
    return task.sample(made, length, sample)


def bare(text: str) -> str:
    return "".join(text.split()).lower().replace("##", "")


@pytest.mark.parametrize(
    ("kind", "form"),
    [*((kind, "plain") for kind in SPELLING), ("byte level", "fewshot"), ("always", "chat")],
)
def test_slots_hold_what_the_answer_says_of_its_references(kind: str, form: str) -> None:
    made: Any = copy.deepcopy(tokenizer(kind, "both"))
    if form == "chat":
        made.chat_template = TEMPLATE
    for name in (*TASKS, *MADE):
        if name == "books":
            continue
        prompt = drawn(made, name, LENGTH if kind == "merging" else 1400, form=form)
        keys = answer_keys(prompt, made)
        assert keys is not None and len(keys) == len(prompt.questions), name
        for question, slots in zip(prompt.questions, keys, strict=True):
            assert len(slots) == len(question.answer_ids)
            pairs = [(a, prompt.ids[s]) for a, s in zip(question.answer_ids, slots, strict=True) if s >= 0]  # fmt: skip
            for said, held in pairs:
                assert bare(made.decode([said])) == bare(made.decode([held])) != "", name
            # No more is keyed than the references.
            spelt = bare("".join(made.decode([said]) for said, _ in pairs))
            if "<unk>" in made.decode(list(question.answer_ids)):
                continue
            assert spelt and len(spelt) <= len(bare("".join(question.references))), name


@pytest.mark.parametrize("kind", SPELLING)
def test_the_value_of_the_question_s_own_thing_is_found_among_others_alike(kind: str) -> None:
    """The text around a key is the fact about what was asked for, and no other."""
    made: Any = tokenizer(kind, "both")
    prompt = drawn(made, "niah-multikey")
    keys = answer_keys(prompt, made)
    assert keys is not None
    for question, slots in zip(prompt.questions, keys, strict=True):
        last = max(slots)
        before = bare(made.decode(list(prompt.ids[: last + 1])))
        value, fact = bare(question.references[0]), bare(question.facts[0])
        upto = fact[: fact.rfind(value)]
        # What stands before the key ends as the fact does before, or within, the value.
        assert any(before.endswith(upto + value[:n]) for n in range(1, len(value) + 1))


def test_values_of_symbols_stand_behind_their_keys() -> None:
    from transformers import AutoTokenizer

    from topkit.experiments.model.load import REFERENCE

    made = AutoTokenizer.from_pretrained(REFERENCE)
    prompt = make_task("mqar", pairs=4).sample(made, 200, 0)
    keys = answer_keys(prompt, made)
    assert keys is not None
    for question, (slot,) in zip(prompt.questions, keys, strict=True):
        assert prompt.ids[slot] == question.answer_ids[0]
        assert prompt.ids[slot - 1] == question.ids[-1]
    again = make_task("mqar", pairs=4, passes=2).sample(made, 200, 0)
    assert answer_keys(again, made) is None


@dataclass(frozen=True)
class Nowhere(Task):
    """Knows no place of its answers; or one that stands twice, or holds something else."""

    name: ClassVar[str] = "nowhere"
    questions: int = 1
    how: str = "silent"

    def plant(self, rng: np.random.Generator, wording: str) -> Planted:
        facts = {"silent": (), "twice": ("It is 731.",), "other": ("It is red.",)}[self.how]
        said = ("It is 731.", "It is 731.") if self.how == "twice" else ("It is 731.", "It is red.")
        return Planted(said, (Question("\nWhat is it? It is", " 731", ("731",), facts=facts),))


@pytest.mark.parametrize("how", ["silent", "twice", "other"])
def test_what_is_not_known_is_none(how: str) -> None:
    made: Any = tokenizer(next(iter(KINDS)), "both")
    assert answer_keys(Nowhere(how=how).sample(made, 300, 0), made) is None
    assert answer_keys(drawn(made, "books"), made) is None


def test_keys_in_part_are_kept_and_questions_begin_with_the_first() -> None:
    made: Any = tokenizer(next(iter(KINDS)), "both")
    prompt = drawn(made, "niah-multikey")
    lost = replace(prompt.questions[0], facts=())
    keys = answer_keys(replace(prompt, questions=(lost, *prompt.questions[1:])), made)
    assert keys is not None and set(keys[0]) == {-1} and max(keys[1]) >= 0
    assert first_key(keys[0]) == -1
    assert first_key(keys[1]) == next(slot for slot in keys[1] if slot >= 0)


KEY, VALUE = "9f1c2d", "6b7e44aa"
FILES: dict[str, dict[str, Any]] = {
    "ruler:task=niah_single_2": {
        "input": "A. One of the special magic numbers for tin is: 8041377. B.\nWhat is the special magic number?",
        "outputs": ["8041377"],
        "answer_prefix": " It is",
    },
    "lost-in-the-middle": {
        "ordered_kv_records": [["aa11", "0c0c0c"], [KEY, VALUE], ["bb22", "1d1d1d"]],
        "key": KEY,
        "value": VALUE,
    },
    "helmet:task=json_kv": {
        "context": json.dumps({"aa11": "0c0c0c", KEY: VALUE}),
        "question": KEY,
        "answer": VALUE,
        "demos": [["k", "v"], ["l", "w"]],
    },
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_files(kind: str, name: str, tmp_path: Path) -> None:
    made: Any = tokenizer(kind, "both")
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(FILES[name]) + "\n", encoding="utf-8")
    short, _, task = name.partition(":task=")
    given = {"task": task} if task else {}
    prompt = make_task(short, file=str(path), **given).sample(made, LENGTH, 0)
    keys = answer_keys(prompt, made)
    if "<unk>" in made.decode(list(prompt.questions[0].answer_ids)):
        return
    assert keys is not None
    pairs = zip(prompt.questions[0].answer_ids, keys[0], strict=True)
    found = [
        (bare(made.decode([a])), bare(made.decode([prompt.ids[s]]))) for a, s in pairs if s >= 0
    ]
    assert found and all(said == held for said, held in found)
    assert "".join(said for said, _ in found) in prompt.questions[0].references[0]
