"""NoLiMa's needle sets: facts that a question asks for in other words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from topkit.errors import InputError
from topkit.experiments.tasks.checks import require_depth
from topkit.experiments.tasks.encoding import encode
from topkit.experiments.tasks.files.needle_sets import Needle, named, needles_of, row_of
from topkit.experiments.tasks.files.placement import distractor_share, placed
from topkit.experiments.tasks.files.row import Row, encoded
from topkit.experiments.tasks.files.task import FileTask
from topkit.experiments.tasks.prompt import Prompt
from topkit.experiments.tasks.request import PromptRequest, random_for

# Places of a needle, and letters that no token of a text has on average.
DEPTHS, LETTERS = 26, 32


@dataclass(frozen=True)
class NoLiMa(FileTask):
    """Every needle, question and test of a set, at each of 26 depths, in an order drawn once.

    book: a text whose lines a needle goes between; without one, the run's text by its sentences.
    depth: 0 the start and 1 the end; -1: NoLiMa's depths in turn. task: one type of question alone.
    """

    name: ClassVar[str] = "nolima"
    source: ClassVar[str] = "NoLiMa, arXiv 2502.05167"
    asks: ClassVar[str] = "a fact in other words than its question's, of NoLiMa's needle sets"
    paths: ClassVar[tuple[str, ...]] = ("file", "book")
    example: ClassVar[str] = (
        "a needle set: a JSON list of needles with id, needle, questions and tests"
    )

    task: str = ""
    book: str = ""
    depth: float = -1

    def __post_init__(self) -> None:
        super().__post_init__()
        require_depth(self.name, self.depth)

    def most_samples(self) -> int | None:
        return len(self.needles()) * (DEPTHS if self.depth < 0 else 1)

    def needles(self) -> list[Needle]:
        """The tests of the set. Raises: InputError naming the needle and what it lacks."""
        known = [n for at in range(len(self.rows)) for n in needles_of(self.rows, at, self.remedy)]
        chosen = [n for n in known if self.task in ("", n.kind)]
        if not chosen:
            kinds = ", ".join(sorted({n.kind for n in known}))
            raise InputError(f"{self.file} has no questions of type {self.task!r}; known: {kinds}")
        return chosen

    def prompt_of(self, request: PromptRequest) -> Prompt:
        needles, count = self.needles(), self.most_samples() or 0
        # Needles come in turn, each at a depth of its own.
        order = random_for(self.name, "order").permutation(count)
        number, at = divmod(int(order[request.sample]), count // len(needles))
        depth = at / (DEPTHS - 1) if self.depth < 0 else self.depth
        rng = request.random(self.name)
        needle = named(needles[number], rng)
        text = self._text(request, rng)
        others = [named(needles[(number + n) % len(needles)], rng) for n in self.examples]
        examples = [row_of(other, other.fact) for other in others]
        away = distractor_share(depth, float(rng.random())) if needle.distractor else 0.0
        row = self._fullest(needle, text, (depth, away), request, examples)
        return self.asked(row, request, examples)

    def _text(self, request: PromptRequest, rng: np.random.Generator) -> str:
        """The lines of the book; or a text's sentences from some place on, one a line."""
        if self.book:
            try:
                with open(self.book, encoding="utf-8") as file:
                    text = file.read()
            except (OSError, ValueError) as error:
                why = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
                raise InputError(
                    f"cannot read {self.book}: {why}; {self.name} takes book=TEXT"
                ) from None
            if "\n" not in text.strip():
                raise InputError(f"{self.book} is one line; {self.name} puts needles between lines")
            return text
        sentences = request.text.sentences
        at = int(rng.integers(len(sentences)))
        return "\n".join([*sentences[at:], *sentences[:at]])

    def _fullest(
        self,
        needle: Needle,
        text: str,
        depths: tuple[float, float],
        request: PromptRequest,
        examples: list[Row],
    ) -> Row:
        """The row over as much of the text as fits; over none of it, where nothing does.

        depths: of the needle, and of its distractor.
        """
        tokenizer, length = request.tokenizer, request.length

        def cost(row: Row) -> int:
            return encoded(self.told(row, examples), self.form, tokenizer, self.name)[3]

        facts = filter(None, (needle.fact, needle.distractor))
        alone = row_of(needle, "".join(f"{fact}\n" for fact in facts))
        room = length - cost(alone)
        # Twice the room holds every window, and no text has so many letters a token.
        ids = encode(tokenizer, text[: LETTERS * length]) if room > 0 else []
        while room > 0:
            row = row_of(needle, placed(needle, ids, room, depths, tokenizer))
            used = cost(row)
            if used <= length:
                return row
            room -= used - length
        return alone
