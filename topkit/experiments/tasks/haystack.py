"""Haystacks: running text, cut to measure, with sentences planted between its own."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from topkit.errors import InputError
from topkit.experiments.tasks.encoding import Tokenizer, begun, encode

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
        return _read(EXCERPT, 0, 0)

    @classmethod
    def of_file(cls, path: str | Path) -> Haystack:
        """A user's own text.

        Raises: InputError when there is no such file, or it holds no text.
        """
        if not Path(path).is_file():
            raise InputError(f"no text at {str(path)!r}; give a plain text file in UTF-8")
        path = Path(path).absolute()
        stat = path.stat()
        return _read(path, stat.st_mtime_ns, stat.st_size)

    def bury(
        self,
        planted: Sequence[str],
        depths: Sequence[float],
        tokenizer: Tokenizer,
        room: int,
        rng: np.random.Generator,
    ) -> str:
        """A text of at most `room` tokens with `planted` in it; more where these alone are more.

        `depths` say where each goes, 0 the start and 1 the end; none: anywhere, in their order.
        """
        bare = len(begun(tokenizer, " ".join(planted)))
        depths = list(depths) or sorted(rng.random(len(planted)).tolist())
        filler = self._filler(tokenizer, room - bare, rng)
        while True:
            text = _woven(filler, planted, depths)
            count = len(begun(tokenizer, text))
            if count <= room or not filler:
                return text
            # Joins may cost a token that the parts did not: give up words until it fits.
            words = filler[-1].split(" ")[: -max(1, count - room)]
            filler = filler[:-1] + ([" ".join(words)] if words else [])

    def _filler(self, tokenizer: Tokenizer, room: int, rng: np.random.Generator) -> list[str]:
        chosen, at = [], int(rng.integers(len(self.sentences)))
        before = len(encode(tokenizer, "."))
        while room > 0:
            sentence = self.sentences[at % len(self.sentences)]
            # As it costs behind another: by itself it may begin with a token of its own.
            cost = max(1, len(encode(tokenizer, f". {sentence}")) - before)
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


def _pieces(sentence: str) -> list[str]:
    """A sentence in parts of a length that a haystack can be cut to, and facts planted between."""
    parts = re.findall(rf"\S{{1,{LONGEST_WORD}}}", sentence)
    return textwrap.wrap(" ".join(parts), LONGEST_SENTENCE, break_on_hyphens=False)


@lru_cache(maxsize=4)
def _read(path: Path, changed: int, size: int) -> Haystack:
    """The text of a file as it is since it was `changed`."""
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
