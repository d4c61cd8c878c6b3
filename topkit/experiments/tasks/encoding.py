"""From text to tokens: a haystack, a question and an answer are encoded as the one text that they are.

Encoded apart, and joined, they give other tokens wherever a tokenizer puts a space before each text,
merges over the seam, or ends a text with a token of its own.
"""

# pyright: strict
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Protocol

from topkit.errors import InputError
from topkit.experiments.tasks.forms import CHAT, PLAIN, Layout, chat, plain
from topkit.experiments.tasks.prompt import Question


class Tokenizer(Protocol):
    """What tasks use of a transformers tokenizer."""

    def __call__(self, text: str, *, add_special_tokens: bool) -> Any: ...


def encode(tokenizer: Tokenizer, text: str) -> list[int]:
    """The tokens of a text alone, none added before or behind it."""
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def begun(tokenizer: Tokenizer, text: str) -> list[int]:
    """The tokens of a text that will go on: with the tokens that open a text, without those that end one."""
    ids = list(tokenizer(text, add_special_tokens=True)["input_ids"])
    return ids[: len(ids) - _behind(tokenizer, text[:64])]


def together(
    tokenizer: Tokenizer,
    text: str,
    questions: Sequence[Question],
    task: str,
    form: str = PLAIN,
    system: str = "",
) -> tuple[tuple[int, ...], tuple[Question, ...]]:
    """The tokens of a haystack, and its questions with theirs: joined, those of the whole text.

    The haystack's are the tokens that it has by itself and before every question; where a merge goes
    over the seam, its last token is the question's. So it is with the question and its answer. In chat,
    what the template puts before the haystack is the haystack's, and what it puts behind the question
    the question's; `system` is a turn before the user's.
    Raises: InputError for an answer of no tokens, a haystack that shares none with its questions, and
    chat without a template for it.
    """
    laid = _laid(tokenizer, text, questions, task, form, system)
    read = encode if form == CHAT else begun
    alone = read(tokenizer, laid[0].haystack)
    wholes = [read(tokenizer, one.whole) for one in laid]
    asked = [read(tokenizer, one.asked) for one in laid]
    counts = [_common(a, whole) for a, whole in zip(asked, wholes, strict=True)]
    # A question has a token at least: its last is what the answer is predicted from.
    cut = min(
        min(_common(alone, whole), count - 1) for whole, count in zip(wholes, counts, strict=True)
    )
    if cut < 1:
        raise InputError(f"{task}: its haystack has no tokens that its questions share")
    for q, whole, count in zip(questions, wholes, counts, strict=True):
        if count == len(whole):
            raise InputError(f"{task}: its answer {q.answer!r} has no tokens behind the question")
    made = (
        replace(q, ids=tuple(whole[cut:n]), answer_ids=tuple(whole[n:]), seam_ids=tuple(before[n:]))
        for q, whole, before, n in zip(questions, wholes, asked, counts, strict=True)
    )
    return tuple(wholes[0][:cut]), tuple(made)


def _laid(
    tokenizer: Tokenizer,
    text: str,
    questions: Sequence[Question],
    task: str,
    form: str,
    system: str,
) -> list[Layout]:
    if form == CHAT:
        return [chat(tokenizer, text, q, task, system) for q in questions]
    return [plain(text, q) for q in questions]


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    """The length of the common prefix of two lists of tokens."""
    apart = (n for n, (x, y) in enumerate(zip(a, b, strict=False)) if x != y)
    return next(apart, min(len(a), len(b)))


def _behind(tokenizer: Tokenizer, text: str) -> int:
    """The number of tokens that the tokenizer adds at the end of a text."""
    bare = encode(tokenizer, text)
    framed = list(tokenizer(text, add_special_tokens=True)["input_ids"])
    behind = (
        len(framed) - at - len(bare)
        for at in range(len(framed) - len(bare), -1, -1)
        if framed[at : at + len(bare)] == bare
    )
    return next(behind, 0)
