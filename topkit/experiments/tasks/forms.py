"""The forms of a task: how haystack, question and answer are laid out as one text."""

# pyright: strict
from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from topkit.errors import InputError
from topkit.experiments.tasks.prompt import Question
from topkit.grammar import nearest

# Running text; a user's turn in the tokenizer's chat template; running text behind worked examples.
PLAIN, CHAT, FEWSHOT = FORMS = ("plain", "chat", "fewshot")
# Tokens that a turn of chat may take beside the answer: a sentence that leads to it.
IN_CHAT = 64


@dataclass(frozen=True)
class Layout:
    """The text of a haystack, of it and a question, of all with the answer: each begins the next one."""

    haystack: str
    asked: str
    whole: str


def require_form(task: str, form: str, shots: int = 1) -> None:
    """Raises: InputError for an unknown form, and for no worked example."""
    if form not in FORMS:
        raise InputError(f"{task} has no form {form!r}; {nearest(form, FORMS)}")
    if shots < 1:
        raise InputError(f"{task}: shots must be at least 1; got {shots}")


def plain(text: str, question: Question) -> Layout:
    """Haystack, question and answer, one behind the other."""
    asked = text + question.text
    return Layout(text, asked, asked + question.answer)


def chat(tokenizer: Any, text: str, question: Question, task: str, system: str = "") -> Layout:
    """Haystack and question as the user's turn; the answer begins the model's, behind its prompt.

    A blank that the answer begins with belongs to running text, and goes where no prefix stands before.
    Raises: InputError for a tokenizer without a chat template, and a template that refuses the turns or
    changes their text.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise InputError(
            f"{task}: form=chat needs a chat template, and this model's tokenizer has none; ask with "
            f"form=plain or form=fewshot"
        )
    turns = [{"role": "system", "content": system}] if system else []
    turns.append({"role": "user", "content": text + question.text.removesuffix(question.prefix)})
    try:
        shown = str(
            tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        )
    except Exception as error:
        said = " ".join(f"{type(error).__name__}: {error}".split())
        raise InputError(f"{task}: the chat template of this model failed: {said}") from error
    said = text.strip()  # templates may trim a turn
    at = shown.find(said)
    if not said or at < 0:
        raise InputError(f"{task}: the chat template of this model changes the text of a turn")
    answer = question.answer if question.prefix else question.answer.lstrip()
    asked = shown + question.prefix
    return Layout(shown[: at + len(said)], asked, asked + answer)
