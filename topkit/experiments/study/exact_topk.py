"""Whether exact Top-k equals full attention at a margin: verdicts as sentences and as a table."""

# pyright: strict
from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from topkit.experiments.study.blocks import Block, Heading, Items, Paragraph, Table
from topkit.experiments.study.curve import Curve
from topkit.experiments.study.equality import EQUAL, Equality, equality
from topkit.experiments.study.intervals import Intervals
from topkit.experiments.study.kinds import EXACT
from topkit.experiments.study.planner import POWER
from topkit.experiments.study.sentences import BETTER, FLOOR, UNDECIDED, WORSE, said
from topkit.experiments.study.stats import Interval

HOW = (
    "Equal at a margin: the 95 % interval of the paired difference per haystack lies within it, both ways (two "
    "one-sided tests); worse or better: it lies beyond. The haystacks that would decide are those by which two "
    f"cells that are equal are called so in {POWER:.0%} of studies, differing as often as these did "
    "(docs/statistics.md)."
)
COLUMNS = ("setting", "k", "share of N", "full attention", "exact Top-k", "difference", "verdict", "planner")  # fmt: skip


@dataclass(frozen=True)
class Verdict:
    """Exact Top-k against full attention on a curve at one k."""

    curve: Curve
    place: int
    dense: Interval
    exact: Interval
    found: Equality

    @property
    def share(self) -> float:
        """Of the context that is kept."""
        return (self.curve.cells[self.place].k(self.curve.length) or 0) / self.curve.length


def verdicts(curves: Sequence[Curve], margin: float) -> list[Verdict]:
    """Of each curve that ran full attention, exact Top-k at each budget, the smallest first."""
    made: list[Verdict] = []
    for curve in curves:
        dense = curve.place(None)
        if dense is None or curve.running_text:
            continue
        accuracy = Intervals(curve).accuracy
        places = [curve.place(EXACT, budget) for budget in curve.budgets]
        made += [
            Verdict(curve, place, accuracy[dense], accuracy[place], equality(curve, place, dense, margin))
            for place in places
            if place is not None
        ]  # fmt: skip
    return made


def blocks(curves: Sequence[Curve], margin: float, level: int = 2) -> Iterator[Block]:
    """The section of a report, or of a page."""
    made = verdicts(curves, margin)
    yield Heading(f"Does exact Top-k equal full attention, within {margin:g}?", level)
    yield Items([*sentences(made)] or ["Full attention and exact Top-k were not run side by side."])
    yield Paragraph(HOW)
    if made:
        yield Table(COLUMNS, [_row(one) for one in made])


def sentences(made: Sequence[Verdict]) -> Iterator[str]:
    """What was found on each curve, a line each."""
    for curve in dict.fromkeys(one.curve.title for one in made):
        own = [one for one in made if one.curve.title == curve]
        words = [_words(word, [one for one in own if one.found.word == word]) for word in (EQUAL, WORSE, BETTER, UNDECIDED, FLOOR)]  # fmt: skip
        count = own[0].found.haystacks
        yield f"{curve} ({count} haystacks): {'; '.join(filter(None, words))}."


def _words(word: str, own: Sequence[Verdict]) -> str:
    if not own:
        return ""
    at = ", ".join(f"{one.share:.1%}" for one in own)
    if word != UNDECIDED:
        return f"{word} at {at} of the keys"
    counts = [one.found.needed for one in own]
    if None in counts:
        return f"{word} at {at}"
    return f"{word} at {at} ({', '.join(f'{count:,}' for count in counts)} haystacks would decide)"


def _row(one: Verdict) -> list[str]:
    needed = one.found.needed
    return [
        one.curve.title,
        str(one.curve.cells[one.place].budget),
        f"{one.share:.1%}",
        said(one.dense, digits=3),
        said(one.exact, digits=3),
        said(one.found.gap, signed=True, digits=3),
        one.found.word,
        "" if needed is None else f"{needed:,} haystacks",
    ]
