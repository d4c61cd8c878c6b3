"""What a capture runs over: token sequences, from a task or a text, and the positions to keep."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from operator import index
from pathlib import Path
from typing import Any

from topkit.documents import quote
from topkit.errors import InputError
from topkit.experiments.tasks import Task
from topkit.experiments.tasks import prompt as make_prompt


@dataclass(frozen=True)
class Passage:
    """One sample: its tokens, the positions whose queries are kept, and how many queries before the first."""

    ids: Sequence[int]
    positions: Sequence[int]
    text: str = ""
    prefill: int = 0

    def at(self, choice: str | Sequence[int] | None) -> Passage:
        """The same passage, other positions: "last:32", "every:64", "5,9" or numbers; None: its own.

        Raises: InputError when they are not understood, or not in the passage.
        """
        length = len(self.ids)
        if choice is None:
            choice = self.positions
        chosen = _parse(choice, length) if isinstance(choice, str) else choice
        try:
            positions = {index(n) for n in chosen}
        except TypeError:
            raise InputError(f"positions must be whole numbers; got {quote(choice)}") from None
        if not positions or min(positions) < 0 or max(positions) >= length:
            raise InputError(
                f"positions {quote(choice)} are not within a passage of {length} tokens"
            )
        return replace(self, positions=sorted(positions))

    def behind(self, prefill: int | str) -> Passage:
        """The same passage, with that many queries of the tokens before its first position, or "all".

        Raises: InputError for another word, and where no token stands before.
        """
        first, digits = self.positions[0], str(prefill)
        if digits != "all" and not (digits.isascii() and digits.isdecimal()):
            raise InputError(f"prefill_queries must be a number or all; got {quote(prefill)}")
        count = first if digits == "all" else min(int(digits), first)
        if digits != "0" and count == 0:
            raise InputError(
                "prefill_queries are of the tokens before the first position, which is 0; give later "
                "positions"
            )
        return replace(self, prefill=count)

    def record(self, sample: int) -> dict[str, Any]:
        """What a capture's manifest says of it."""
        ids = " ".join(str(token) for token in self.ids)
        return {
            "sample": sample,
            "tokens": len(self.ids),
            "ids": ids,
            "ids_sha256": hashlib.sha256(ids.encode()).hexdigest(),
            "prompt": self.text,
            "positions": list(self.positions),
        }


def read_text(path: str | Path) -> str:
    """The text of a file. Raises: InputError when it is missing or not UTF-8."""
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text: {error.reason} at {error.start}") from error


def text_passages(text: str, tokenizer: Any, length: int, samples: int) -> list[Passage]:
    """Passages of `length` tokens, one after the other, each begun as the tokenizer begins a text.

    Kept by default: the last 32 positions.
    Raises: InputError when the text is too short.
    """
    bos = tokenizer.bos_token_id
    begin = [token for token in tokenizer("").input_ids if token == bos]
    tokens = tokenizer(text, add_special_tokens=False, verbose=False).input_ids
    width = length - len(begin)
    if width < 1 or len(tokens) < width * samples:
        raise InputError(
            f"the text has {len(tokens)} tokens; {samples} samples of length {length} need "
            f"{max(width, 1) * samples}; give a longer text, or ask for fewer or shorter samples"
        )
    kept = range(max(length - 32, 0), length)
    pieces = [tokens[width * n : width * (n + 1)] for n in range(samples)]
    return [Passage(begin + piece, kept, tokenizer.decode(piece)) for piece in pieces]


def task_passages(
    task: Task, tokenizer: Any, length: int, samples: int, seed: int
) -> list[Passage]:
    """Passages of at most `length` tokens: haystack n, one of its questions, and the answer to it.

    Kept by default: question and answer, as the model reads them while it answers rightly.
    Raises: InputError when the task does not fit into so few tokens.
    """
    passages = []
    for sample in range(samples):
        prompt = make_prompt(task, tokenizer, length, sample, seed=seed)
        question = prompt.questions[sample % len(prompt.questions)]
        ids = [*prompt.ids, *question.ids, *question.answer_ids]
        text = prompt.text + question.text + question.answer
        passages.append(Passage(ids, range(len(prompt.ids), len(ids)), text))
    return passages


def _parse(choice: str, length: int) -> Sequence[int]:
    match = re.fullmatch(r"(last|every):([0-9]{1,12})", choice)
    if match is None:
        try:
            return numbers(choice)
        except ValueError:
            hint = "positions must be last:N, every:N or numbers as 5,9"
            raise InputError(f"{hint}; got {choice!r}") from None
    number = int(match[2])
    if number < 1:
        raise InputError(f"positions must be last:N or every:N of at least 1; got {choice!r}")
    if match[1] == "last":
        return range(length - number, length)
    return range(number - 1, length, number)


def numbers(text: str) -> list[int]:
    """The numbers of a list as "0,3,5". Raises: ValueError for anything else."""
    if not re.fullmatch(r"\s*[0-9]{1,12}\s*(,\s*[0-9]{1,12}\s*)*", text):
        raise ValueError(f"no numbers: {text!r}")
    return [int(number) for number in text.split(",")]
