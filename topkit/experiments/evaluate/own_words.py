"""What a cell says in its own words: decoded greedily, up to a stop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from topkit.experiments.evaluate.streams import Stream
from topkit.experiments.tasks import Prompt

# Gives the next token's logits [R, 1, V] of some streams that are fed tokens [R, t].
Step = Callable[[Sequence[Stream], Tensor], Tensor]
EOS, STOP, BUDGET = "eos", "stop", "budget"


@dataclass(frozen=True)
class Stops:
    """Where an answer ends: at a token that ends the model's turn, or at one of some texts.

    Special tokens are no part of the text; one that a task names as its stop is a token that ends it.
    A text counts once something was said before it: an answer may begin with an empty line.
    """

    tokenizer: Any
    tokens: frozenset[int]
    texts: tuple[str, ...]

    @classmethod
    def of(cls, model: PreTrainedModel, tokenizer: Any, prompt: Prompt) -> Stops:
        """Those of a model, its tokenizer and a prompt."""
        own = getattr(model.generation_config, "eos_token_id", None)
        listed = [*(own if isinstance(own, list | tuple) else [own]), tokenizer.eos_token_id]
        added = getattr(tokenizer, "get_added_vocab", dict)()
        listed += [added[text] for text in prompt.stop if text in added]
        ends = frozenset(int(token) for token in listed if token is not None)
        return cls(tokenizer, ends, tuple(t for t in prompt.stop if t and t not in added))

    def read(self, ids: Sequence[int]) -> tuple[str, str]:
        """The text before the first stop, and which it was; of what has none, all of it and BUDGET."""
        end = next((n for n, token in enumerate(ids) if token in self.tokens), None)
        text = str(self.tokenizer.decode(list(ids[:end]), skip_special_tokens=True))
        begin = len(text) - len(text.lstrip())
        places = [place for stop in self.texts if (place := text.find(stop, begin)) >= 0]
        if places:
            return text[: min(places)], STOP
        return text, BUDGET if end is None else EOS


@dataclass
class Row:
    """One answer: `said` grows behind the `seam` tokens of its question, to `most` more or a stop."""

    said: list[int]
    most: int
    seam: int
    stops: Stops

    def __post_init__(self) -> None:
        self.ended = self._ended()

    def say(self, token: int) -> None:
        self.said.append(token)
        self.ended = self._ended()

    def _ended(self) -> bool:
        own = self.said[self.seam :]
        return len(own) >= self.most or self.stops.read(own)[1] != BUDGET


@dataclass
class Line:
    """Answers of one stream, which has read all of their first `place` tokens but the last.

    Its rows stay together: what some have said already, behind that place, is fed to them.
    """

    stream: Stream
    rows: list[Row]
    place: int

    def fed(self) -> list[int]:
        """The token of each row that the stream reads next."""
        # A row that has ended reads on, until it is dropped.
        return [row.said[min(self.place, len(row.said)) - 1] for row in self.rows]

    def say(self, tokens: Sequence[int]) -> None:
        """Move on by a token, which is new to the rows that have said no more yet and have not ended."""
        for row, token in zip(self.rows, tokens, strict=True):
            if len(row.said) == self.place and not row.ended:
                row.say(token)
        self.place += 1

    def going(self) -> Line | None:
        """Without the ended rows, where they are half of it or more; None where all have ended."""
        left = [n for n, row in enumerate(self.rows) if not row.ended]
        if not left or 2 * len(left) > len(self.rows):
            return self if left else None
        rows = [self.rows[n] for n in left]
        return Line(self.stream.fork(torch.tensor(left)), rows, self.place)


def go_on(lines: Sequence[Line], step: Step, device: torch.device) -> None:
    """Let every row of some lines go on from what it has said already, to its end; in place.

    Those that are behind come first, and the others join them. A stream none of whose rows goes on is
    dropped at once, and so are the ended rows of one where they are half of it, so that those that still
    talk wait for no other.
    """
    waiting = list(lines)
    while waiting:
        place = min(line.place for line in waiting)
        now = [line for line in waiting if line.place == place]
        fed = torch.tensor([token for line in now for token in line.fed()], device=device)
        likeliest = iter(
            step([line.stream for line in now], fed[:, None])[:, -1].argmax(-1).tolist()
        )
        for line in now:
            line.say([next(likeliest) for _ in line.rows])
        left = (line.going() if line.place > place else line for line in waiting)
        waiting = [line for line in left if line is not None]
