"""Haystacks: running text, cut to measure, with sentences planted between its own."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from topkit.errors import InputError

EXCERPT = Path(__file__).parents[2] / "data" / "excerpt.txt"

# Text without full stops, or without spaces, is cut after so many characters.
LONGEST_SENTENCE, LONGEST_WORD = 1200, 100


@dataclass(frozen=True)
class Haystack:
    """The sentences of a text, drawn from any point on and from the start again at the end."""

    name: str
    sentences: tuple[str, ...]

    @classmethod
    def bundled(cls) -> Haystack:
        """A public-domain novel's chapters, no part of the reference model's training."""
        return _read(EXCERPT)

    @classmethod
    def of_file(cls, path: str | Path) -> Haystack:
        """A user's own text.

        Raises: InputError when there is no such file, or it holds no text.
        """
        if not Path(path).is_file():
            raise InputError(f"no text at {str(path)!r}; give a plain text file in UTF-8")
        return _read(Path(path))

    def bury(
        self,
        planted: Sequence[str],
        depths: Sequence[float],
        tokenizer: Any,
        room: int,
        rng: np.random.Generator,
        task: str = "the task",
    ) -> tuple[str, list[int]]:
        """A text of at most `room` tokens with `planted` in it, and its tokens.

        `depths` say where each goes, 0 the start and 1 the end; none: anywhere, in their order.
        Raises: InputError when what is planted does not fit.
        """
        bare = _tokens(tokenizer, " ".join(planted))
        if len(bare) > room:
            raise InputError(
                f"{task} plants {len(bare)} tokens where its questions leave room for {max(room, 0)}; "
                "ask for a longer length"
            )
        depths = list(depths) or sorted(rng.random(len(planted)).tolist())
        filler = self._filler(tokenizer, room - len(bare), rng)
        while True:
            text = _woven(filler, planted, depths)
            ids = _tokens(tokenizer, text)
            if len(ids) <= room or not filler:
                return text, ids
            # Joins may cost a token that the parts did not: give up words until it fits.
            words = filler[-1].split(" ")[: -max(1, len(ids) - room)]
            filler = filler[:-1] + ([" ".join(words)] if words else [])

    def _filler(self, tokenizer: Any, room: int, rng: np.random.Generator) -> list[str]:
        chosen, at = [], int(rng.integers(len(self.sentences)))
        while room > 0:
            sentence = self.sentences[at % len(self.sentences)]
            cost = len(tokenizer(" " + sentence, add_special_tokens=False)["input_ids"])
            if cost > room:
                words = sentence.split(" ")
                chosen.append(" ".join(words[: max(1, len(words) * room // cost)]))
                break
            chosen.append(sentence)
            room, at = room - cost, at + 1
        return chosen


def _woven(filler: Sequence[str], planted: Sequence[str], depths: Sequence[float]) -> str:
    gaps = [round(depth * len(filler)) for depth in depths]
    parts: list[str] = []
    for gap in range(len(filler) + 1):
        parts += [s for s, g in zip(planted, gaps, strict=True) if g == gap]
        parts += filler[gap : gap + 1]
    return " ".join(parts)


def _tokens(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=True)["input_ids"])


def _pieces(sentence: str) -> list[str]:
    """A sentence in parts of a length that a haystack can be cut to, and facts planted between."""
    parts = re.findall(rf"\S{{1,{LONGEST_WORD}}}", sentence)
    return textwrap.wrap(" ".join(parts), LONGEST_SENTENCE, break_on_hyphens=False)


@lru_cache(maxsize=4)
def _read(path: Path) -> Haystack:
    try:
        text = " ".join(path.read_text(encoding="utf-8").split())
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text: {error.reason}") from error
    # The full stops, too, of text that has no spaces.
    ends = re.split(r"(?<=[.!?])\s+|(?<=[\u3002\uff01\uff1f])", text)
    sentences = tuple(piece for sentence in ends for piece in _pieces(sentence))
    if not sentences:
        raise InputError(f"{path} holds no text")
    return Haystack(path.name, sentences)
