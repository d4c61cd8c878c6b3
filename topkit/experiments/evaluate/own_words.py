"""What a cell says in its own words: decoded greedily, up to a stop."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
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
class _Row:
    """One answer: `said` grows behind the `seam` tokens of its question, to `most` more or a stop."""

    said: list[int]
    most: int
    seam: int
    stops: Stops

    def ended(self) -> bool:
        own = self.said[self.seam :]
        return len(own) >= self.most or self.stops.read(own)[1] != BUDGET


@dataclass
class _Line:
    """A stream of the rows that have not ended, the token before each answer [r, 1], and which end."""

    stream: Stream
    rows: list[_Row]
    last: Tensor
    open: list[bool]

    def say(self, tokens: Sequence[int], place: int) -> None:
        """Add a token to each row that has not ended, and has said so many."""
        for n, (row, token) in enumerate(zip(self.rows, tokens, strict=True)):
            if self.open[n] and len(row.said) == place:
                row.said.append(token)
                self.open[n] = not row.ended()

    def going(self) -> list[int]:
        """The rows that have not ended."""
        return [n for n, still in enumerate(self.open) if still]

    def only(self, rows: list[int]) -> _Line:
        """A line of some rows."""
        places = torch.tensor(rows, device=self.last.device)
        some = [self.rows[n] for n in rows]
        return _Line(self.stream.fork(places), some, self.last[places], [True] * len(rows))


def go_on(
    streams: Sequence[Stream],
    last: Tensor,
    said: Sequence[Sequence[list[int]]],
    most: Sequence[int],
    seams: Sequence[int],
    stops: Stops,
    step: Step,
) -> None:
    """Let every row go on from what it has `said` already, at least a token, to its end; in place.

    A stream none of whose rows goes on is dropped at once, and so are the ended rows of one where they are
    half of it, so that those that still talk wait for no other. Nothing is decoded where every row has ended.
    Shapes: last [B, 1], the token before each answer; most: B; said: a list for each stream, of B answers
    for each of its cells, each behind as many tokens of its question as `seams` [B] says.
    """
    lines = list(_lines(streams, last, said, most, seams, stops))
    if not lines:
        return
    place = min(len(row.said) for line in lines for row in line.rows)
    fed = torch.cat([_begun(line, place) for line in lines])
    while lines:
        likeliest = step([line.stream for line in lines], fed)[:, -1].argmax(-1).tolist()
        going, tokens, first = list[_Line](), list[int](), 0
        for line in lines:
            chosen = likeliest[first : first + len(line.rows)]
            first += len(line.rows)
            line.say(chosen, place)
            left = line.going()
            if left and 2 * len(left) <= len(line.rows):
                line, chosen = line.only(left), [chosen[n] for n in left]
            if left:
                going.append(line)
                tokens += [
                    row.said[place] if place < len(row.said) else token
                    for row, token in zip(line.rows, chosen, strict=True)
                ]
        lines, fed, place = going, torch.tensor(tokens, device=last.device)[:, None], place + 1


def _lines(
    streams: Sequence[Stream],
    last: Tensor,
    said: Sequence[Sequence[list[int]]],
    most: Sequence[int],
    seams: Sequence[int],
    stops: Stops,
) -> Iterator[_Line]:
    for stream, answers in zip(streams, said, strict=True):
        copies = len(answers) // len(most)
        ends = zip(answers, [*most] * copies, [*seams] * copies, strict=True)
        rows = [_Row(*row, stops) for row in ends]
        line = _Line(stream, rows, last.repeat(copies, 1), [not row.ended() for row in rows])
        if left := line.going():
            yield line.only(left)


def _begun(line: _Line, place: int) -> Tensor:
    """The token before each answer, and the answer's first `place` tokens [r, 1 + place]."""
    first = torch.tensor([row.said[:place] for row in line.rows], device=line.last.device)
    return torch.cat([line.last, first], 1)
