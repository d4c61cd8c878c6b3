"""Multi-query associative recall: pairs of symbols, each queried once among noise."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np

from topkit.errors import InputError
from topkit.experiments.tasks.base import HELD_OUT, Task
from topkit.experiments.tasks.encoding import begun
from topkit.experiments.tasks.forms import PLAIN
from topkit.experiments.tasks.prompt import Prompt, Question
from topkit.experiments.tasks.request import PromptRequest

# MQAR's symbols, where a tokenizer has as many.
MOST = 8192


@dataclass(frozen=True)
class Recall(Task):
    """Symbols are tokens: keys of the lower half of `vocabulary`, values of the upper.

    pairs: keys and their values, written `passes` times; each key is asked for once more, at a
    distance that falls off by a power law of exponent power - 1, and its value is to follow.
    noise: whether what stands between is drawn, or the first symbol. vocabulary 0: 8192, or as many as
    the tokenizer has.
    """

    name: ClassVar[str] = "mqar"
    family: ClassVar[str] = HELD_OUT
    source: ClassVar[str] = "MQAR, arXiv 2312.04927"
    asks: ClassVar[str] = "the value of a symbol, among pairs of symbols and noise"
    stop: ClassVar[tuple[str, ...]] = ()
    tokens_to_generate: ClassVar[int | None] = 1
    rule: ClassVar[str] = "same"

    questions: int = field(default=1, init=False, repr=False)
    wording: str = field(default="any", init=False, repr=False)
    pairs: int = 8
    vocabulary: int = 0
    passes: int = 1
    power: float = 0.01
    noise: bool = True

    def __post_init__(self) -> None:
        if self.pairs < 1 or self.passes < 1 or self.vocabulary < 0:
            raise InputError(
                f"{self.name}: expected pairs, passes >= 1, vocabulary >= 0; got {self}"
            )
        if self.form != PLAIN:
            raise InputError(f"{self.name} has no form but plain: its symbols are no words")
        if not 0 < self.power <= 1:
            raise InputError(f"{self.name}: power must lie in 0..1, above 0; got {self.power}")

    def prompt_of(self, request: PromptRequest) -> Prompt:
        tokenizer, length = request.tokenizer, request.length
        symbols = self._symbols(tokenizer)
        first = begun(tokenizer, "")
        room = (length - len(first)) // 2 * 2
        if room < 2 * self.pairs * (self.passes + 1):
            raise InputError(
                f"{self.name} with {self.pairs} pairs does not fit into a length of {length}; ask for a "
                f"longer length, of {2 * self.pairs * (self.passes + 1) + len(first)} or more"
            )
        drawn, asked = self.drawn(request.random(self.name), room, len(symbols))
        ids = [symbols[n] for n in drawn]
        begin = min(asked)
        questions = tuple(
            Question(
                text=_text(tokenizer, ids[begin : at + 1]),
                answer=(said := _text(tokenizer, [symbols[value]])),
                references=(said,),
                ids=tuple(ids[begin : at + 1]),
                answer_ids=(symbols[value],),
                # Written several times, any of its places may be read.
                slots=(len(first) + drawn.index(value),) if self.passes == 1 else (),
            )
            for at, value in sorted(asked.items())
        )
        prefix = (*first, *ids[:begin])
        return self.made(
            request,
            _text(tokenizer, prefix),
            prefix,
            questions,
            stop=self.stop,
            tokens_to_generate=self.tokens_to_generate,
            rule=self.rule,
        )

    def parameters(self) -> dict[str, Any]:
        unsaid = {f.name for f in fields(self) if not f.init}
        return {name: x for name, x in super().parameters().items() if name not in unsaid}

    def drawn(
        self, rng: np.random.Generator, room: int, vocabulary: int
    ) -> tuple[list[int], dict[int, int]]:
        """So many symbols, and for each place of a query the symbol that is to follow."""
        half = vocabulary // 2
        keys = 1 + rng.choice(half - 1, self.pairs, replace=False)
        values = half + rng.choice(vocabulary - half, self.pairs, replace=False)
        known = np.tile(np.stack([keys, values], 1).ravel(), self.passes)
        gaps = np.arange(1, (room - len(known)) // 2 + 1) ** (self.power - 1.0)
        chosen = rng.choice(len(gaps), self.pairs, replace=False, p=gaps / gaps.sum())
        rest = np.zeros(room - len(known), dtype=np.int64)
        if self.noise:
            rest = rng.integers(vocabulary, size=len(rest))
        rest[2 * chosen] = keys
        asked = {len(known) + 2 * int(gap): int(v) for gap, v in zip(chosen, values, strict=True)}
        return [int(n) for n in (*known, *rest)], asked

    def _symbols(self, tokenizer: Any) -> tuple[int, ...]:
        known = _tokens(tokenizer)
        wanted = self.vocabulary or min(len(known), MOST)
        if not 2 * self.pairs + 2 <= wanted <= len(known):
            raise InputError(
                f"{self.name}: {self.pairs} pairs need a vocabulary of {2 * self.pairs + 2} or more, of "
                f"the {len(known):,} tokens of the tokenizer that may be symbols; got {wanted}"
            )
        return known[:wanted]


@lru_cache(maxsize=4)
def _tokens(tokenizer: Any) -> tuple[int, ...]:
    """The tokens that each read as a text of their own, blanks aside."""
    special = set(tokenizer.all_special_ids)
    read: dict[str, int] = {}
    for token in range(len(tokenizer)):
        text = _text(tokenizer, [token]).strip()
        if text and "\ufffd" not in text and token not in special:
            read.setdefault(text, token)
    return tuple(read.values())


def _text(tokenizer: Any, ids: Any) -> str:
    """The text of some tokens."""
    return str(tokenizer.decode(list(ids)))
