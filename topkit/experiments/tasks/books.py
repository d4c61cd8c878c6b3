"""Books: plain text, whose last tokens are predicted one by one."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import ClassVar

from topkit.errors import InputError
from topkit.experiments.tasks.base import TRAINED, Task, random_for
from topkit.experiments.tasks.encoding import Tokenizer, begun
from topkit.experiments.tasks.haystack import Haystack
from topkit.experiments.tasks.prompt import Prompt, Question


@dataclass(frozen=True)
class Books(Task):
    """Running text: the NLL of its last `tokens` tokens, each after a dense prefix.

    There is no right answer to match: exact match is null.
    """

    name: ClassVar[str] = "books"
    family: ClassVar[str] = TRAINED
    source: ClassVar[str] = "language modelling"
    asks: ClassVar[str] = "the next token of running text"

    questions: int = 1
    tokens: int = 256

    def __post_init__(self) -> None:
        if self.questions != 1 or self.tokens < 1:
            raise InputError(f"{self.name}: expected questions=1 and tokens >= 1; got {self}")

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
        rng = random_for(split, self.name, seed, sample)
        text = (haystack or Haystack.bundled()).bury([], [], tokenizer, length, rng)
        ids = begun(tokenizer, text)
        wording = self._wording(rng)
        cut = len(ids) - self.tokens
        if cut < 2:
            raise InputError(
                f"{self.name} judges {self.tokens} tokens after a prefix; a length of {length} is too "
                "short"
            )
        # The last token of the prefix is the question: it is the first to go through a selector.
        question = Question("", "", (), tuple(ids[cut - 1 : cut]), tuple(ids[cut:]))
        return Prompt(
            self.name,
            length,
            sample,
            seed,
            wording,
            self.family,
            text,
            tuple(ids[: cut - 1]),
            (question,),
            asdict(self),
        )
