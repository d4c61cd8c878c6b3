"""RULER's tasks: from its files, or made in its manner."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from topkit.errors import InputError
from topkit.experiments.tasks.base import RULER
from topkit.experiments.tasks.files.row import Row, encoded
from topkit.experiments.tasks.files.task import FileTask
from topkit.experiments.tasks.haystack import Haystack
from topkit.experiments.tasks.prompt import Prompt
from topkit.experiments.tasks.request import PromptRequest
from topkit.experiments.tasks.ruler.counting import CommonPrompt, FrequentPrompt
from topkit.experiments.tasks.ruler.forms import MADE, NEEDLES, form_of, task_of
from topkit.experiments.tasks.ruler.fullest import fullest
from topkit.experiments.tasks.ruler.needles import NeedlePrompt
from topkit.experiments.tasks.ruler.rows import row_of
from topkit.experiments.tasks.ruler.tracking import LINES, TrackingPrompt

Made = NeedlePrompt | TrackingPrompt | CommonPrompt | FrequentPrompt


@dataclass(frozen=True)
class Ruler(FileTask):
    """Rows of a validation.jsonl that RULER's scripts made; without a file, prompts in their manner.

    task: one of RULER's thirteen, where the file's folder does not say it. What is made stands in the
    bundled text or a user's own, is as long as it may be, and is another for each sample and seed; its
    worked examples are as short as they may be.
    """

    name: ClassVar[str] = "ruler"
    source: ClassVar[str] = RULER
    asks: ClassVar[str] = "RULER's tasks, of its files or made in its manner"
    example: ClassVar[str] = (
        'JSON lines such as {"input": "...", "outputs": ["..."], "answer_prefix": "..."}'
    )

    task: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.task:
            form_of(self.task)

    def most_samples(self) -> int | None:
        return super().most_samples() if self.file else None

    def row(self, number: int, length: int) -> Row:
        task = self.task or task_of(self.file)
        return row_of(self.rows, number, task, self.tokens, self.remedy)

    def prompt_of(self, request: PromptRequest) -> Prompt:
        if self.file:
            return super().prompt_of(request)
        if self.task not in MADE:
            raise InputError(
                f"{self.name} needs file=PATH of a validation.jsonl, or task= of {', '.join(MADE)}, "
                f"which are made here; got task={self.task!r}"
            )
        rng, text = request.random(self.name, self.task), request.text
        drawn = [int(n) for n in rng.integers(2**63, size=1 + len(self.examples))]
        shown = [self._shapes(n, text, 0)[-1] for n in drawn[1:]]
        examples = [made.row(made.least) for made in shown]
        row = self._fullest(drawn[0], request, examples)
        return self.asked(row, request, examples)

    def _fullest(self, seed: int, request: PromptRequest, examples: list[Row]) -> Row:
        """The longest prompt of a length; of the shortest, where that is too long, for `asked` to refuse."""
        tokenizer, length = request.tokenizer, request.length

        def cost(made: Made) -> Callable[[int], int]:
            return lambda units: encoded(
                self.told(made.row(units), examples), self.form, tokenizer, self.name
            )[3]

        shapes = self._shapes(seed, request.text, length)
        for made in shapes:
            if (units := fullest(cost(made), length, made.least)) >= 0:
                return made.row(units)
        return shapes[-1].row(shapes[-1].least)

    def _shapes(self, seed: int, text: Haystack, length: int) -> list[Made]:
        """What makes the prompts; where there are several, the later take less."""
        if self.task in NEEDLES:
            return [NeedlePrompt(self.task, seed, text)]
        if self.task == "vt":
            return [TrackingPrompt(seed, lines) for lines in (LINES, TrackingPrompt.least)]
        if self.task == "cwe":
            return [CommonPrompt(seed, length, text)]
        return [FrequentPrompt(seed, length)]
