"""Answer keys: the slot of a haystack that holds the token which an answer says next."""

# pyright: strict
from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from topkit.experiments.tasks.encoding import encode
from topkit.experiments.tasks.prompt import Prompt, Question

# No slot: the token stands nowhere that is known.
NONE = -1
# For each token of an answer the slot that holds it, or NONE.
AnswerKeys = tuple[int, ...]


def answer_keys(prompt: Prompt, tokenizer: Any) -> tuple[AnswerKeys, ...] | None:
    """The keys of each question's answer; None where no slot is known for any of them.

    A step has a key where the answer says a part of a reference that the task knows the place of, and the
    haystack holds it as the same token, blanks aside; a token of blanks alone has none.
    """
    read = _Spelt.of(prompt.ids, tokenizer) if any(q.facts for q in prompt.questions) else None
    keys = tuple(_of_question(question, read, tokenizer) for question in prompt.questions)
    return keys if any(slot != NONE for slots in keys for slot in slots) else None


def first_key(slots: AnswerKeys) -> int:
    """What a question's own steps are to find: the key of the first token that has one."""
    return next((slot for slot in slots if slot != NONE), NONE)


def _of_question(question: Question, read: _Spelt | None, tokenizer: Any) -> AnswerKeys:
    if question.slots:
        return question.slots
    slots = [NONE] * len(question.answer_ids)
    if read is None or not question.facts:
        return tuple(slots)
    said, at = _Spelt.of(question.answer_ids, tokenizer), 0
    for reference, fact in zip(question.references, question.facts, strict=False):
        value = _bare(reference)
        begin, place = said.text.find(value, at), read.end_of(_bare(fact), value)
        if begin < 0 or place is None:
            continue
        at = begin + len(value)
        there = dict(read.tokens(place, len(value)))
        for token, number in said.tokens(begin, len(value)):
            slots[number] = there.get(token, NONE)
    return tuple(slots)


@dataclass(frozen=True)
class _Spelt:
    """Tokens as the text that they spell without blanks, and where in it each begins."""

    text: str
    pieces: Sequence[str]
    starts: Sequence[int]

    @classmethod
    def of(cls, ids: Sequence[int], tokenizer: Any) -> _Spelt:
        # Behind another: some decoders write a token at a text's start in another way.
        behind = encode(tokenizer, "a")
        before = len(_bare(tokenizer.decode(behind)))
        known = {t: _bare(tokenizer.decode([*behind, t]))[before:] for t in set(ids)}
        pieces = [known[token] for token in ids]
        starts = list(accumulate(map(len, pieces), initial=0))
        return cls("".join(pieces), pieces, starts)

    def end_of(self, fact: str, value: str) -> int | None:
        """Where a value stands that ends what stands once: its fact, or itself; None where it does not.

        What a fact goes on with may be a question's token, and of its words some may be unknown.
        """
        inside = fact.rfind(value)
        if inside < 0 or not value:
            return None
        place = self._only(fact[: inside + len(value)])
        return self._only(value) if place is None else place + inside

    def _only(self, text: str) -> int | None:
        place = self.text.find(text)
        return None if place < 0 or self.text.find(text, place + 1) >= 0 else place

    def tokens(self, begin: int, length: int) -> Iterator[tuple[tuple[int, str], int]]:
        """The tokens within a part of the text: (place in it, what it spells), and its number."""
        for number, (start, piece) in enumerate(zip(self.starts, self.pieces, strict=False)):
            if piece and begin <= start and start + len(piece) <= begin + length:
                yield (start - begin, piece), number


def _bare(text: str) -> str:
    """A text without its blanks, in small letters, as some tokenizers write it."""
    return "".join(text.split()).lower()
