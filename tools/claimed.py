"""What a published finding is here, and what results answer to it: a verdict, and a sentence above each table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from topkit.experiments.study.blocks import Block, Items, Paragraph, Table
from topkit.experiments.study.curve import Curve
from topkit.experiments.study.equality import Equality
from topkit.experiments.study.sentences import UNDECIDED as OPEN
from topkit.experiments.study.stats import Interval

SUPPORTED, NOT, UNDECIDED, NOT_RUN = "supported", "not supported", "undecided", "not run yet"
MARGIN = 0.01
SETTING = ("model", "task", "tokens", "sparse from")
# Where they stand among these, what is said once where all rows have the same.
SAME = {2: "{} tokens", 3: "sparse from the {}"}
# Of a comparison at a margin: how many haystacks were run, and how many would decide.
PLANNED = "run; needed"


@dataclass(frozen=True)
class Answer:
    """A verdict, what it was asked on, a line each, and what was found."""

    verdict: str
    on: Sequence[str]
    found: Sequence[Block] = field(default_factory=list)


@dataclass(frozen=True)
class Claim:
    """A published finding: where it stands, what it says, what was asked, and the command that asks it."""

    name: str
    source: str
    says: str
    asked: str
    command: str
    answer: Callable[[], Answer]


def lines(*sentences: str) -> list[Block]:
    """Sentences as a list, one as a paragraph; none is no block."""
    return [Items(sentences) if len(sentences) > 1 else Paragraph(*sentences)] if sentences else []


def table(sentence: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[Block]:
    """A table below the sentence that says what it shows."""
    return [Paragraph(sentence), Table(columns, rows)]


def by_setting(
    sentence: str, columns: Sequence[str], rows: Sequence[tuple[Curve, Sequence[str]]]
) -> list[Block]:
    """A table whose rows begin with the curve's setting: tokens and protocol stand above it where all have the same."""
    settings = [_setting(curve) for curve, _ in rows]
    differ = [n for n in range(len(SETTING)) if n not in SAME or len(rows) < 2 or len({one[n] for one in settings}) > 1]  # fmt: skip
    alike = [SAME[n].format(settings[0][n]) for n in SAME if n not in differ]
    above = f"{sentence} All rows: {', '.join(alike)}." if alike else sentence
    cells = [
        [*(one[n] for n in differ), *own] for one, (_, own) in zip(settings, rows, strict=True)
    ]
    return table(above, [*(SETTING[n] for n in differ), *columns], cells)


def _setting(curve: Curve) -> list[str]:
    """A curve's cells below SETTING."""
    # What prompts hold in truth stands behind the label, where the two are far apart.
    truth = curve.setting.rpartition(" tokens")[2]
    return [curve.model, curve.task, f"{curve.length:,}{truth}", curve.sparse_from]


def where(curve: Curve) -> str:
    """A curve's setting within a sentence."""
    return (
        f"{curve.model}, {curve.task}, {curve.length:,} tokens, sparse from the {curve.sparse_from}"
    )


def planned(found: Equality) -> str:
    """A comparison's cell below PLANNED; nothing is needed once it is decided."""
    needed = "more than can be run" if found.needed is None else f"{found.needed:,}"
    return f"{found.haystacks:,}; {needed}" if found.word == OPEN else f"{found.haystacks:,}"


def plans(found: Iterable[Equality]) -> str:
    """A sentence on the haystacks of what is undecided; "" where nothing is."""
    still = [one for one in found if one.word == OPEN]
    if not still:
        return ""
    ran = span(one.haystacks for one in still)
    counts = [one.needed for one in still if one.needed is not None]
    needed = f"about {span(counts)} haystacks" if counts else "no number that can be run"
    return f" Were the undecided equal, {needed} would show it (*needed*); {ran} were run (*run*)."


def tally(words: Iterable[str], form: str = "{count} {word}") -> str:
    """How often each word comes, the most frequent first."""
    counts = Counter(words).most_common()
    return ", ".join(form.format(word=word, count=count) for word, count in counts)


def span(values: Iterable[float], form: str = ",") -> str:
    """The least and the greatest of some numbers, or the one that they all are; "" of none."""
    ordered = [f"{value:{form}}" for value in sorted(values)]
    return " to ".join(dict.fromkeys((ordered[0], ordered[-1]))) if ordered else ""


def apart(one: Interval, other: Interval) -> Interval:
    """The difference of two independent estimates, their intervals joined."""
    value = one.value - other.value
    low = value - np.hypot(one.value - one.low, other.high - other.value)
    return Interval(value, low, value + np.hypot(one.high - one.value, other.value - other.low))
