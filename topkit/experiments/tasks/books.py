"""Books: plain text, whose last tokens are predicted one by one."""

from __future__ import annotations

from bisect import bisect_left
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import ClassVar

from topkit.errors import InputError
from topkit.experiments.tasks.base import TRAINED, Task
from topkit.experiments.tasks.encoding import Tokenizer, begun, encode, together
from topkit.experiments.tasks.forms import CHAT, FEWSHOT, require_form
from topkit.experiments.tasks.prompt import Prompt, Question
from topkit.experiments.tasks.request import PromptRequest, random_for


@dataclass(frozen=True)
class Books(Task):
    """Running text: the NLL of its last `tokens` tokens, each after a dense prefix.

    There is no right answer to match: exact match is null. In chat the text is the user's, and the model
    goes on with it in its own turn; an example is another passage, of `tokens` tokens.
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

    def prompt_of(self, request: PromptRequest) -> Prompt:
        require_form(self.name, self.form, self.shots)
        rng, tokenizer, length = request.random(self.name), request.tokenizer, request.length
        source, room, shown = request.text, length, ""
        if self.form == FEWSHOT:
            others = random_for(request.split, self.name, request.seed, request.sample, FEWSHOT)
            passages = (
                source.bury([], [], tokenizer, self.tokens, others) for _ in range(self.shots)
            )
            shown = "".join(f"{passage}\n" for passage in passages)
        while True:
            drawn = deepcopy(rng)
            text = shown + source.bury(
                [], [], tokenizer, room - len(encode(tokenizer, shown)), drawn
            )
            ids, question = self._cut(tokenizer, text, length)
            used = len(ids) + len(question.ids) + len(question.answer_ids)
            if used <= length:
                break
            room -= used - length
            if room < self.tokens:
                raise self._short(length)
        return self.made(request, text, ids, (question,), wording=self._wording(drawn))

    def _cut(
        self, tokenizer: Tokenizer, text: str, length: int
    ) -> tuple[tuple[int, ...], Question]:
        """The tokens of the prefix, and the last ones as the answer."""
        if self.form == CHAT:
            words = text.split(" ")

            def count(last: int) -> int:
                return len(encode(tokenizer, " ".join(words[-last:]))) if last else 0

            last = bisect_left(range(self.tokens), self.tokens, key=count)
            if last >= len(words):
                raise self._short(length)
            answer = Question("", " ".join(words[-last:]), ())
            ids, (q,) = together(tokenizer, " ".join(words[:-last]), [answer], self.name, self.form)
            return ids, replace(q, answer="", answer_ids=q.answer_ids[: self.tokens])
        ids = begun(tokenizer, text)
        cut = len(ids) - self.tokens
        if cut < 2:
            raise self._short(length)
        # The last token of the prefix is the question: it is the first to go through a selector.
        return tuple(ids[: cut - 1]), Question(
            "", "", (), tuple(ids[cut - 1 : cut]), tuple(ids[cut:])
        )

    def _short(self, length: int) -> InputError:
        return InputError(
            f"{self.name} judges {self.tokens} tokens after a prefix; a length of {length} is too short"
        )
