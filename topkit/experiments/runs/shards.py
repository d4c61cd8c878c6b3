"""Shards: a run cut into n shares, each for a machine or a task of a scheduler."""

# pyright: strict
from __future__ import annotations

import re
from dataclasses import dataclass

from topkit.documents import quote
from topkit.errors import InputError


@dataclass(frozen=True)
class Shard:
    """Share `number` of `of`, counted from 0 as the tasks of a scheduler's array are."""

    number: int = 0
    of: int = 1

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"

    @property
    def whole(self) -> bool:
        """Whether it is all of the run."""
        return self.of == 1

    @property
    def notes(self) -> tuple[str, ...]:
        """What a plan says of it."""
        text = f"shard {self}: the jobs of one in {self.of} haystacks or layers of samples"
        return () if self.whole else (text,)

    def require_no(self, force: bool, out: object) -> None:
        """Raises: InputError for a run by force, which would take the other shards' rows away."""
        if force and not self.whole:
            raise InputError(
                f"force empties {out} for a run, and shard {self} is one of several that write there: use "
                "another folder"
            )

    @property
    def name(self) -> str:
        """Its name in a file's name."""
        return f"{self.number}-of-{self.of}"

    def holds(self, place: int) -> bool:
        """Whether the job at a place of the run's list is of this share."""
        return place % self.of == self.number


WHOLE = Shard()


def parse_shard(text: str | Shard | None) -> Shard:
    """The shard that a text names, as 0/4, 1/4, 2/4 or 3/4; none is the whole run.

    Raises: InputError for anything else.
    """
    if text is None or isinstance(text, Shard):
        return text or WHOLE
    match = re.fullmatch(r"\s*([0-9]{1,9})\s*/\s*([0-9]{1,9})\s*", str(text))
    shard = Shard(int(match[1]), int(match[2])) if match else Shard(0, 0)
    if not 0 <= shard.number < shard.of:
        last = f"0/{shard.of} to {shard.of - 1}/{shard.of}" if shard.of else "0/4 to 3/4"
        raise InputError(f"a shard is I/N, counted from 0: {last}; got {quote(text)}")
    return shard
