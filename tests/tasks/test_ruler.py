"""RULER's files are asked in RULER's words; what is made in its manner keeps its laws."""

from __future__ import annotations

import json
import re
import uuid
from collections import Counter
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from topkit.errors import InputError
from topkit.experiments.model.load import REFERENCE
from topkit.experiments.tasks import Haystack, Prompt, make_task, task_name
from topkit.experiments.tasks.ruler.forms import FORMS, MADE, task_of
from topkit.experiments.tasks.ruler.fullest import fullest

TOKENIZER = AutoTokenizer.from_pretrained(REFERENCE, local_files_only=True)
NEEDLES = [name for name in MADE if name.startswith("niah")]
# RULER's tokens to generate (its constants.py), by the kind of task.
TOKENS = {"niah": 128, "vt": 30, "cwe": 120, "fwe": 50, "qa": 32}
NEEDLE = r"One of the special magic (?:numbers|uuids) for ([\w-]+) is: ([\w-]+)\."


@lru_cache
def made(task: str, length: int = 1024, sample: int = 0, seed: int = 0) -> Prompt:
    return make_task("ruler", task=task).sample(TOKENIZER, length, sample, seed=seed)


def whole(prompt: Prompt) -> str:
    return prompt.text + prompt.questions[0].text


def read(path: Path, row: dict[str, Any], **parameters: Any) -> Prompt:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(row), encoding="utf-8")
    return make_task("ruler", file=str(path), **parameters).sample(TOKENIZER, 512, 0)


@pytest.mark.parametrize("task", FORMS)
def test_a_row_is_its_input_and_the_prefix_of_its_answer(tmp_path: Path, task: str) -> None:
    row = {
        "index": 0,
        "input": "Some text.\nMore of it.\nQuestion: what?\nWhat is the special magic number for it?",
        "outputs": ["1234567", "a b"],
        "length": 300,
        "answer_prefix": " The special magic number is",
    }
    prompt = read(tmp_path / task / "validation.jsonl", row)
    (question,) = prompt.questions
    assert whole(prompt) == row["input"] + row["answer_prefix"]
    assert question.text.startswith("\nWhat is the special magic")
    assert question.references == ("1234567", "a b")
    assert prompt.tokens_to_generate == TOKENS[task.partition("_")[0]] and prompt.stop == ()
    assert prompt.wording == task and prompt.rule == ("any" if task.startswith("qa") else "all")
    ids = prompt.ids + question.ids + question.answer_ids
    assert ids == tuple(TOKENIZER(whole(prompt) + question.answer)["input_ids"])


ASKED = [
    ("Text.\nWhat are all the special magic numbers for a?", "\nWhat are all"),
    ("Text.\n\nQuestion: Find all [/INST]\n\n", "\nQuestion: Find"),
    ("All on one line. What is the special magic uuid for b", " What is the special"),
    ("Text.\nIs it late?\n\n", "\nIs it late"),
    ("No lines. But two sentences", " But two"),
    ("nothing of the kind", ""),
]


@pytest.mark.parametrize(("text", "asked"), ASKED)
def test_the_question_begins_where_ruler_asks(tmp_path: Path, text: str, asked: str) -> None:
    prompt = read(tmp_path / "rows.jsonl", {"input": text, "outputs": ["7"]}, tokens=3)
    assert whole(prompt) == text and prompt.tokens_to_generate == 3
    assert prompt.questions[0].text.startswith(asked) and bool(prompt.questions[0].text) == bool(
        asked
    )


def test_tokens_are_the_files_then_rulers(tmp_path: Path) -> None:
    row = {"input": "It is 7.\nWhat is it?", "outputs": ["7"]}
    for field in ("tokens_to_generate", "max_new_tokens"):
        path = tmp_path / "vt" / "validation.jsonl"
        assert read(path, {**row, field: 9}).tokens_to_generate == 9
        assert read(path, {**row, field: 9}, tokens=5).tokens_to_generate == 5
        assert read(tmp_path / "rows.jsonl", {**row, field: 9}).tokens_to_generate == 9
    assert read(path, row).tokens_to_generate == 30
    assert read(tmp_path / "rows.jsonl", row, task="fwe").tokens_to_generate == 50
    with pytest.raises(InputError, match=r"line 1 does not say which of RULER's tasks it is"):
        read(tmp_path / "rows.jsonl", row)


def test_a_files_place_says_its_task() -> None:
    assert task_of("data/niah_single_2/validation.jsonl") == "niah_single_2"
    assert task_of("vt/data/validation.jsonl") == "vt"
    assert task_of("4096/cwe.jsonl") == task_of("cwe.jsonl.gz") == "cwe"
    assert task_of("qa_1.validation.jsonl") == "qa_1"
    assert task_of("niah/validation.jsonl") == ""


@pytest.mark.parametrize("task", MADE)
@pytest.mark.parametrize("length", [1024, 4096])
def test_what_is_made_fits_its_length_with_the_answer(task: str, length: int) -> None:
    for sample in range(2):
        prompt = made(task, length, sample)
        (q,) = prompt.questions
        used = len(prompt.ids) + len(q.ids) + max(prompt.tokens_to_generate or 0, len(q.answer_ids))
        # Units are words of text, lines of noise, needles, or words that stand often.
        assert length - 160 < used <= length
        assert prompt.ids + q.ids + q.answer_ids == tuple(
            TOKENIZER(whole(prompt) + q.answer)["input_ids"]
        )
        assert all(reference in prompt.text for reference in q.references)
        assert prompt.tokens_to_generate == TOKENS[task.partition("_")[0]]
        assert prompt.parameters["task"] == task and prompt.wording == task


@pytest.mark.parametrize("task", MADE)
def test_a_seed_is_a_prompt_and_no_two_are_alike(task: str) -> None:
    assert make_task("ruler", task=task).sample(TOKENIZER, 1024, 0) == made(task)
    others = [made(task, sample=1), made(task, seed=1)]
    others.append(make_task("ruler", task=task).sample(TOKENIZER, 1024, 0, split="calibration"))
    assert len({prompt.questions[0].references for prompt in (made(task), *others)}) == 4


@pytest.mark.parametrize("task", NEEDLES)
def test_needles_are_asked_for_as_ruler_does(task: str) -> None:
    for sample in range(4):
        prompt = made(task, 2048, sample)
        told = re.findall(NEEDLE, prompt.text)
        (q,) = prompt.questions
        kind = "uuid" if task in ("niah_single_3", "niah_multikey_3") else "number"
        keys = {"niah_multikey_1": 4, "niah_multiquery": 4}.get(task, 1)
        values = 4 if task == "niah_multivalue" else 1
        several = task in ("niah_multivalue", "niah_multiquery")
        counts = Counter(key for key, _ in told)
        assert len({value for _, value in told}) == len(told)
        if task in ("niah_multikey_2", "niah_multikey_3"):
            assert len(counts) == len(told) >= 20  # the haystack is needles, no key twice
        else:
            assert set(counts.values()) == {values} and len(counts) == keys
        a, words, verb = ("Some", f"{kind}s", "are") if several else ("A", kind, "is")
        head = f"{a} special magic {words} {verb} hidden within the following text. "
        assert prompt.text.startswith(head)
        asked = re.fullmatch(
            rf"\nWhat {verb}(?: all)? the special magic {words} for (.+) mentioned in the provided text\? "
            rf"The special magic {words} for (.+) mentioned in the provided text {verb}",
            q.text,
        )
        assert asked and asked[1] == asked[2]
        wanted = re.split(r", and |, ", asked[1])
        assert len(wanted) == len(set(wanted)) == (4 if task == "niah_multiquery" else 1)
        right = [value for key in wanted for k, value in told if k == key]
        assert Counter(right) == Counter(q.references) and len(right) == (4 if several else 1)
        assert q.answer == " " + ", ".join(q.references)
        if kind == "uuid":
            assert all(uuid.UUID(value).version == 4 for _, value in told)
        else:
            assert all(re.fullmatch(r"[1-9]\d{6}", value) for _, value in told)


def test_needles_stand_anywhere_in_running_text() -> None:
    places = []
    for sample in range(16):
        prompt = made("niah_single_2", 1024, sample)
        places.append(prompt.text.index(prompt.questions[0].references[0]) / len(prompt.text))
        rest = re.sub(NEEDLE + " ?", "", prompt.text.partition("afterwards.\n")[2]).strip()
        assert rest in " ".join(Haystack.bundled().sentences * 2)
    assert np.ptp(places) > 0.5


def test_chains_are_tracked_from_an_example() -> None:
    for sample in range(3):
        prompt = made("vt", 1024, sample)
        (q,) = prompt.questions
        example, _, asked = whole(prompt).rpartition("\n\nMemorize")
        number = re.search(r"assigned the value (\d{5}) in the text above\.", q.text)
        assert number and q.text.endswith("they are: ") and q.answer == " ".join(q.references)
        for text, value, names in (
            (asked, number[1], q.references),
            (example, None, tuple(example.split("they are:  ")[1].split())),
        ):
            links = re.findall(r"VAR ([A-Z]+) = (?:VAR )?(\w+)", text)
            assert [name for name, _ in links] == list(names) and len(set(names)) == 5
            assert [of for _, of in links[1:]] == list(names[:-1])
            assert value in (None, links[0][1])


@pytest.mark.parametrize(("length", "often", "seldom"), [(1024, 6, 1), (4096, 30, 3)])
def test_common_words_are_those_that_stand_often(length: int, often: int, seldom: int) -> None:
    prompt = made("cwe", length)
    (q,) = prompt.questions
    example, _, body = prompt.text.rpartition("appear most often.\nMemor".removesuffix("Memor"))
    listed = re.findall(r"(\d+)\. (\S+)", body)
    assert [int(n) for n, _ in listed] == list(range(1, len(listed) + 1))
    counts = Counter(word for _, word in listed)
    assert {word for word, n in counts.items() if n == often} == set(q.references)
    assert set(counts.values()) == {often, seldom} and len(q.references) == 10
    assert q.answer == "".join(f" {n}. {word}" for n, word in enumerate(q.references, 1))
    shown = example.partition("in the list are: ")[2].splitlines()[0]
    assert len(re.findall(r"\d+\. ([a-z]+)", shown)) == 10
    assert not set(re.findall(r"[a-z]{3,}", shown)) & set(q.references)


@pytest.mark.parametrize("length", [512, 1024, 4096])
def test_frequent_words_stand_more_often_than_all_others_but_dots(length: int) -> None:
    for sample in range(3):
        prompt = made("fwe", length, sample)
        counts = Counter(
            prompt.text.partition("coded words. ")[2].partition("coded words. ")[0].split()
        )
        ranks = counts.most_common()
        assert ranks[0][0] == "..." and [w for w, _ in ranks[1:4]] == list(
            prompt.questions[0].references
        )
        assert ranks[3][1] > ranks[4][1]
        assert all(re.fullmatch(r"[a-z]{6}", word) for word, _ in ranks[1:])


def test_what_cannot_be_made_is_refused() -> None:
    for parameters, said in (
        ({}, "needs file=PATH .* or task= of niah_single_1"),
        ({"task": "qa_1"}, "needs file=PATH .* got task='qa_1'"),
        ({"task": "niah_singel_1"}, "did you mean 'niah_single_1'"),
    ):
        with pytest.raises(InputError, match=said):
            make_task("ruler", **parameters).sample(TOKENIZER, 1024, 0)
    for task in MADE:
        with pytest.raises(
            InputError, match=r"^ruler: .*does not fit into a length of 100; .*longer"
        ):
            made(task, 100)


def test_a_made_tasks_name_parses_back() -> None:
    task = make_task("ruler:task=vt,tokens=40")
    assert task_name(task) == "ruler:tokens=40,task=vt" and make_task(task_name(task)) == task
    assert task.most_samples() is None


@given(
    least=st.integers(1, 40),
    seed=st.integers(0, 999),
    fixed=st.integers(0, 100),
    most=st.integers(0, 500),
)
@settings(deadline=None, max_examples=60)
def test_the_fullest_is_the_largest_that_fits(least: int, seed: int, fixed: int, most: int) -> None:
    costs = fixed + np.cumsum([0, *np.random.default_rng(seed).integers(1, 10, 600)])
    fitting = [n for n in range(least, 501) if costs[n] <= most]
    beyond = 10**6  # of what is never the answer, as no unit is free
    found = fullest(lambda n: int(costs[n]) if n <= 600 else beyond * n, most, least)
    assert found == max(fitting, default=-1)
