"""What can be said of index keys of fp4: of the numbers that were published, and of rows of 4 bits and 8 here."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from claimed import (
    MARGIN,
    PLANNED,
    UNDECIDED,
    Answer,
    apart,
    by_setting,
    planned,
    plans,
    table,
    tally,
)
from committed import curves

from topkit.experiments.study import stats
from topkit.experiments.study.blocks import Block
from topkit.experiments.study.curve import Curve
from topkit.experiments.study.equality import Equality, equality
from topkit.experiments.study.planner import haystacks_needed
from topkit.experiments.study.sentences import said
from topkit.indexers.spec import parse

BITS = ("k", "recall: 4 bits, 8", "mass: 4 bits, 8", "accuracy: 4 bits minus 8", PLANNED, "verdict")
PAIRS = (("sglang#26209", 0.98, 0.965), ("sglang#27059", 0.955, 0.93))
# Questions of each: how many were asked is not said.
ASKED = 200
ON = "the published numbers, and rows of the bundled model and SmolLM2; neither DeepSeek-V4 nor GSM8K was run"


def fp4_keys() -> Answer:
    """What the published numbers can show by themselves, and what rows of 4 bits and 8 say here."""
    made = list(_compared())
    rows = [(one[0], _row(*one)) for one in made]
    found = by_setting(_of_bits([one for *_, one in made]), BITS, rows) if made else []
    return Answer(UNDECIDED, [ON], [*_published(), *found])


def _published() -> list[Block]:
    """The published pairs with intervals of our own, and how many questions would decide."""
    rows, shown = list[list[str]](), 0
    for source, eight, four in PAIRS:
        right = np.stack([np.arange(ASKED) < round(x * ASKED) for x in (eight, four)])
        each = stats.accuracy(right.astype(float), np.ones(ASKED))
        gap = apart(each[1], each[0])
        shown += bool(gap.high < 0)
        rows.append([source, f"{eight:.3f}", f"{four:.3f}", said(gap, signed=True, digits=3)])
    needed = haystacks_needed(MARGIN, 0.03)
    assert needed is not None
    words = (
        f"Of {len(rows)} published pairs of GSM8K scores, {shown} show a cost by themselves, if {ASKED} questions were asked, of which "
        "all four numbers are multiples (unpaired; how many is not said). To call two indexers equal within "
        f"{MARGIN:g} that differ on three questions of a hundred takes about {needed:,} questions (GSM8K's test split has "
        "1,319). In sglang#30546 the same keys on DeepSeek-V3.2, five runs each, score 0.957 with fp8 and 0.958 with fp4."
    )
    return table(words, ("source", "fp8 keys", "fp4 keys", "fp4 minus fp8"), rows)


def _compared() -> Iterator[tuple[Curve, int, int, Equality]]:
    """Curves that have keys of 4 bits and of 8 at their budget, with the places of both."""
    for curve in curves("fidelity-vs-accuracy", "smollm2", "smollm2-ruler"):
        eight, four = (
            curve.place(parse(f"quantized(dtype='{t}')"), curve.budget)
            for t in ("fp8_e4m3", "int4")
        )
        if eight is not None and four is not None:
            yield curve, four, eight, equality(curve, four, eight, MARGIN)


def _row(curve: Curve, four: int, eight: int, found: Equality) -> list[str]:
    recall, mass = curve.mean("recall"), curve.mean("mass")
    return [
        str(curve.budget),
        f"{recall[four]:.2f}, {recall[eight]:.2f}",
        f"{mass[four]:.3f}, {mass[eight]:.3f}",
        said(found.gap, signed=True),
        planned(found),
        found.word,
    ]


def _of_bits(found: Sequence[Equality]) -> str:
    return (
        f"Keys of 4 bits (int4) against 8 (fp8) here, {len(found)} comparisons at a margin of {MARGIN:g}: "
        f"{tally(one.word for one in found)}.{plans(found)}"
    )
