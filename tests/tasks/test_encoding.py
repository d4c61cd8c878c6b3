"""Haystack, question and answer are the tokens of the one text that they are, whatever the tokenizer."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from awkward import FRAMES, KINDS, tokenizer
from topkit.errors import InputError
from topkit.experiments.model.load import REFERENCE
from topkit.experiments.tasks import TASKS as OWN
from topkit.experiments.tasks import Prompt, make_task
from topkit.experiments.tasks.base import Planted, Question, Task
from topkit.experiments.tasks.encoding import begun, together

TASKS = ["niah-single", "niah-multikey", "kv-recall", "variable-tracking"]
SIZES = {"niah-multikey": {"distractors": 4}, "kv-recall": {"distractors": 12}}


def drawn(kind: str, name: str, frame: str | None = "both", length: int = 512) -> Prompt:
    task = make_task(name, questions=1 if name == "niah-single" else 3, **SIZES.get(name, {}))
    return task.sample(tokenizer(kind, frame), length, 0)  # type: ignore[arg-type]


def whole(kind: str, frame: str | None, text: str) -> Any:
    """The encoding of a text by the library itself, and how many of its tokens are the text's."""
    encoding = tokenizer(kind, frame).backend_tokenizer.encode(text)
    before, behind = FRAMES[frame][1:] if frame else (0, 0)
    return encoding, before, len(encoding.ids) - behind


@pytest.mark.parametrize("frame", [*FRAMES, None])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", TASKS)
def test_joined_they_are_the_tokens_of_the_whole_text(kind: str, name: str, frame: Any) -> None:
    prompt = drawn(kind, name, frame, 2048 if kind == "merging" else 1024)
    for q in prompt.questions:
        encoding, _, stop = whole(kind, frame, prompt.text + q.text + q.answer)
        assert [*prompt.ids, *q.ids, *q.answer_ids] == encoding.ids[:stop]
        assert prompt.ids and q.ids and q.answer_ids


@pytest.mark.parametrize("frame", ["both", None])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", TASKS)
def test_the_seams_fall_where_the_texts_meet(kind: str, name: str, frame: Any) -> None:
    """By the characters that each token covers: one that covers some of two texts is the later's."""
    prompt = drawn(kind, name, frame, 2048 if kind == "merging" else 1024)
    for q in prompt.questions:
        asked = len(prompt.text + q.text)
        encoding, first, stop = whole(kind, frame, prompt.text + q.text + q.answer)
        ends = [end for _, end in encoding.offsets[first:stop]]
        assert len(prompt.ids) == first + sum(end <= len(prompt.text) for end in ends)
        assert len(prompt.ids) + len(q.ids) == first + sum(end <= asked for end in ends)


def test_a_merge_over_a_seam_goes_to_what_comes_later() -> None:
    made = tokenizer("merging")
    prompt = drawn("merging", "kv-recall", length=2048)
    (q, *_) = prompt.questions
    assert made.decode([q.ids[0]]) == f"{prompt.text[-1]}\n"
    assert str(made.decode(list(prompt.ids))).endswith(prompt.text[-9:-1])
    assert q.text.endswith("=") and made.decode([q.answer_ids[0]]) == f"={q.answer[:2]}"
    assert made.decode(list(q.answer_ids)) == "=" + q.answer
    (q,) = drawn("merging", "niah-single", length=2048).questions
    assert made.decode([q.answer_ids[0]]) == q.answer[:3]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", [*TASKS, "books"])
def test_length_is_met_and_never_passed(kind: str, name: str) -> None:
    for length in (1024, 1500):
        given = {"tokens": 64} if name == "books" else SIZES.get(name, {})
        prompt = make_task(name, **given).sample(tokenizer(kind), length, 1)  # type: ignore[arg-type]
        used = len(prompt.ids) + max(len(q.ids) + len(q.answer_ids) for q in prompt.questions)
        assert length - 32 <= used <= length


@pytest.mark.parametrize("kind", KINDS)
def test_running_text_ends_with_no_mark(kind: str) -> None:
    prompt = make_task("books", tokens=64).sample(tokenizer(kind), 600, 0)
    (q,) = prompt.questions
    encoding, _, stop = whole(kind, "both", prompt.text)
    assert [*prompt.ids, *q.ids, *q.answer_ids] == encoding.ids[:stop]
    assert len(q.answer_ids) == 64 and q.answer_ids[-1] != 1


PIECES = st.text("ab .=\n0123", max_size=12)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(list(KINDS)), PIECES, st.lists(st.tuples(PIECES, PIECES), min_size=1))
def test_any_texts_are_joined_or_refused(kind: str, text: str, asked: list) -> None:
    text, made = f"It was late. {text}", tokenizer(kind)
    questions = [Question(ask, answer, ("seven",)) for ask, answer in asked]
    if any(begun(made, text + q.text) == begun(made, text + q.text + q.answer) for q in questions):
        with pytest.raises(InputError, match="no tokens"):
            together(made, text, questions, "own")
        return
    ids, encoded = together(made, text, questions, "own")
    for q in encoded:
        encoding, _, stop = whole(kind, "both", text + q.text + q.answer)
        assert [*ids, *q.ids, *q.answer_ids] == encoding.ids[:stop]
        assert ids and q.ids and q.answer_ids
        # What comes before the answer is what the question has by itself.
        before = begun(made, text + q.text)
        assert before[: len(ids) + len(q.ids)] == [*ids, *q.ids]


@dataclass(frozen=True)
class Bare(Task):
    """A question without words, or an answer without."""

    name: ClassVar[str] = "bare"
    asks: str = ""
    says: str = " seven"

    def plant(self, rng: np.random.Generator, wording: str) -> Planted:
        return Planted(("The number is seven.",), (Question(self.asks, self.says, ("seven",)),))


def test_a_question_without_words_takes_the_haystacks_last_token() -> None:
    made = tokenizer("byte level")
    prompt = Bare().sample(made, 200, 0)  # type: ignore[arg-type]
    (q,) = prompt.questions
    assert [*prompt.ids, *q.ids] == begun(made, prompt.text) and len(q.ids) == 1


def test_an_answer_without_tokens_is_refused() -> None:
    with pytest.raises(InputError, match="bare: its answer '' has no tokens"):
        Bare(says="").sample(tokenizer("byte level"), 200, 0)  # type: ignore[arg-type]


def test_prompts_of_the_bundled_tokenizer_are_those_of_0_1() -> None:
    """By which the numbers of studies that were made with it stay."""
    made = AutoTokenizer.from_pretrained(REFERENCE, local_files_only=True)
    prompts = [make_task(name).sample(made, 2048, 1) for name in sorted(OWN)]
    ids = [
        [list(p.ids), *([list(q.ids), list(q.answer_ids)] for q in p.questions)] for p in prompts
    ]
    assert hashlib.sha256(json.dumps(ids).encode()).hexdigest()[:16] == "d879b60d81d8ff9b"
