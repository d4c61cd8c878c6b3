"""A prompt: a haystack, and the questions that share it."""

# pyright: strict
from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from topkit.errors import InputError


@dataclass(frozen=True)
class Question:
    """A question, its canonical answer, and the strings that the task's rule looks for.

    `prefix` is the end of the text with which the answer begins: in chat it stands at the start of the
    model's own turn. `answer_ids` are the tokens to predict, from the first that what stands before has
    not by itself: a token of both is the answer's. `ids` are those before,
    back to the end of the haystack's; `seam_ids` what follows them where there is no answer yet.
    Where it is known what the answer is read from: `facts`, for each reference the text of the haystack that
    holds it, or `slots`, for each of the answer's tokens the haystack's slot, -1 for none.
    Raises: InputError for a blank reference, which any answer would hold.
    """

    text: str
    answer: str
    references: tuple[str, ...]
    ids: tuple[int, ...] = ()
    answer_ids: tuple[int, ...] = ()
    prefix: str = ""
    seam_ids: tuple[int, ...] = ()
    facts: tuple[str, ...] = ()
    slots: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not all(reference.strip() for reference in self.references):
            raise InputError(
                f"a reference that is blank stands in whatever is said; the question {self.text[-80:]!r} "
                f"has {self.references}"
            )


@dataclass(frozen=True)
class Planted:
    """Sentences to plant, in order, where (0 the start, 1 the end), and the questions about them."""

    sentences: tuple[str, ...]
    questions: tuple[Question, ...]
    depths: tuple[float, ...] = ()


@dataclass(frozen=True)
class Prompt:
    """One haystack and the questions that share it.

    `ids` are the haystack's tokens, with all that stands before it: the tokenizer's own first token,
    or what its chat template puts there. A model reads ids + question.ids and should go on with
    question.answer_ids: the tokens of the whole text, encoded at once. `family` and `wording` say
    whether the reference model was trained on the like. What it says is read up to the end of its
    turn, one of the texts `stop`, or `tokens_to_generate`; None: MORE tokens than the true answer has;
    and scored by `rule`, a name in scoring.RULES.
    """

    task: str
    length: int
    sample: int
    seed: int
    wording: str
    family: str
    text: str
    ids: tuple[int, ...]
    questions: tuple[Question, ...]
    parameters: dict[str, Any] = field(default_factory=dict[str, Any])
    stop: tuple[str, ...] = ("\n",)
    tokens_to_generate: int | None = None
    rule: str = "all"

    def tokens(self, question: int) -> int:
        """How many tokens the model reads before it answers a question, whatever `length` says."""
        one = self.questions[question]
        return len(self.ids) + len(one.ids) + len(one.seam_ids)

    def most(self, question: int) -> int:
        """How many tokens may be said to a question: none where there is no right answer."""
        one = self.questions[question]
        if not one.references:
            return 0
        if self.tokens_to_generate is None:
            return len(one.answer_ids) + MORE
        return self.tokens_to_generate


# Room for a full stop and the end of the line, or for a few words before the answer.
MORE = 10
