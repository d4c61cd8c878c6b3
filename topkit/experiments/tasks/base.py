"""What a task is: sentences to plant in a haystack, and questions about them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, Protocol

import numpy as np

from topkit.errors import InputError
from topkit.experiments.tasks.haystack import Haystack
from topkit.grammar import Named, Registry, nearest

TRAINED, HELD_OUT = "trained", "held-out"


class Tokenizer(Protocol):
    """What tasks use of a transformers tokenizer."""

    def __call__(self, text: str, *, add_special_tokens: bool) -> Any: ...


@dataclass(frozen=True)
class Question:
    """A question, its canonical answer, and the strings that RULER's score looks for."""

    text: str
    answer: str
    references: tuple[str, ...]
    ids: tuple[int, ...] = ()
    answer_ids: tuple[int, ...] = ()


@dataclass(frozen=True)
class Planted:
    """Sentences to plant, in order, where (0 the start, 1 the end), and the questions about them."""

    sentences: tuple[str, ...]
    questions: tuple[Question, ...]
    depths: tuple[float, ...] = ()


@dataclass(frozen=True)
class Prompt:
    """One haystack and the questions that share it.

    `ids` are the haystack's tokens, the tokenizer's own first token included. A model reads ids +
    question.ids and should go on with question.answer_ids. `family` and `wording` say whether the
    reference model was trained on the like.
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
    parameters: dict[str, Any] = field(default_factory=dict)


def random_for(*place: Any) -> np.random.Generator:
    """The generator of one place, named by words and numbers: the same on every machine."""
    name = hashlib.sha256(repr(place).encode()).digest()
    return np.random.default_rng(int.from_bytes(name[:16], "little"))


def encode(tokenizer: Tokenizer, text: str) -> tuple[int, ...]:
    """The tokens of a text that stands in the middle of another."""
    return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])


def require_depth(task: str, depth: float) -> None:
    """Raises: InputError for what is neither a depth, 0 the start and 1 the end, nor -1."""
    if depth != -1 and not 0 <= depth <= 1:
        raise InputError(f"{task}: depth must lie in 0..1, or be -1; got {depth}")


# More would not fit into any prompt, and be drawn for ever.
MOST_DIGITS = 1000


def require_digits(task: str, digits: int) -> None:
    """Raises: InputError for a number of digits that no value can have."""
    if not 0 <= digits <= MOST_DIGITS:
        raise InputError(f"{task}: digits must lie in 0..{MOST_DIGITS:,}; got {digits}")


@dataclass(frozen=True)
class Task(Named):
    """A recipe for prompts; its fields are the parameters that a run may set."""

    name: ClassVar[str] = ""
    family: ClassVar[str] = TRAINED
    source: ClassVar[str] = "RULER, arXiv 2404.06654"
    asks: ClassVar[str] = ""

    questions: int = 4
    wording: str = "any"

    @classmethod
    def registry(cls) -> Registry[Any]:
        from topkit.experiments.tasks import REGISTRY

        return REGISTRY

    def plant(self, rng: np.random.Generator, wording: str) -> Planted:
        """Draw the sentences to plant, and the questions about them."""
        raise NotImplementedError(f"{type(self).__name__}.plant")

    def wordings(self) -> dict[str, str]:
        """The wordings of this task, each trained or held-out."""
        return {"plain": TRAINED}

    def sample(
        self,
        tokenizer: Tokenizer,
        length: int,
        sample: int,
        *,
        seed: int = 0,
        haystack: Haystack | None = None,
        split: str = "evaluation",
    ) -> Prompt:
        """Prompt number `sample`: at most `length` tokens with its longest question and answer.

        Raises: InputError when the task does not fit into so few tokens.
        """
        rng = random_for(split, self.name, seed, sample)
        wording = self._wording(rng)
        planted = self.plant(rng, wording)
        questions = tuple(self._encoded(tokenizer, question) for question in planted.questions)
        room = length - max(len(q.ids) + len(q.answer_ids) for q in questions)
        text, ids = (haystack or Haystack.bundled()).bury(
            planted.sentences, planted.depths, tokenizer, room, rng, self.name
        )
        return Prompt(
            self.name,
            length,
            sample,
            seed,
            wording,
            HELD_OUT if HELD_OUT in (self.family, self.wordings()[wording]) else TRAINED,
            text,
            tuple(ids),
            questions,
            asdict(self),
        )

    def _wording(self, rng: np.random.Generator) -> str:
        known = self.wordings()
        if self.wording in known:
            return self.wording
        chosen = [w for w, kind in known.items() if self.wording in ("any", kind)]
        if not chosen:
            words = dict.fromkeys([*known, "any", *known.values()])
            raise InputError(
                f"{self.name} has no wording {self.wording!r}; {nearest(self.wording, words)}"
            )
        return str(rng.choice(chosen))

    def _encoded(self, tokenizer: Tokenizer, q: Question) -> Question:
        # Together and apart give the same tokens: an answer starts with the space before its word.
        ids, answer = encode(tokenizer, q.text), encode(tokenizer, q.answer)
        return Question(q.text, q.answer, q.references, ids, answer)


def ruler_score(prediction: str, references: Sequence[str]) -> float:
    """The share of references that stand in the prediction, whatever the case.

    Source: RULER (arXiv 2404.06654), its all-match score.
    """
    return float(np.mean([r.strip().lower() in prediction.lower() for r in references]))
