"""The page of a study of heads: which must be right, whether they are those that read the answer; and as Markdown."""

# pyright: strict
from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from topkit.experiments.study.blocks import Block, Heading, Items, Paragraph, Table
from topkit.experiments.study.curve import Curve
from topkit.experiments.study.group_maps import CAPTION, READ, group_maps
from topkit.experiments.study.heads import ALPHA, Group, Mended, mended
from topkit.experiments.study.kinds import words_of
from topkit.experiments.study.leaderboard import write_blocks
from topkit.experiments.study.reading import Reading

NAME = "heads"
TITLE = "Which heads must be right"
HOW = (
    "Each poor indexer runs alone, and once for each KV group of each layer with exact Top-k there. A group is tested "
    "on the haystacks that it answers better and worse than the indexer alone does: McNemar's exact test, where a "
    "haystack has one question, and the sign test of a haystack's mean score where it has several; with Holm's "
    f"correction over all groups of an indexer, so that of groups that change nothing any is said to in at most {ALPHA:.0%} "
    "of studies. Intervals are of 95 %, each for itself. A group that changes nothing alone may still matter beside others."
)
# Rows of a table, the largest changes first.
MOST = 12


def write_heads(folder: Path, read: Reading) -> Path:
    """Write report.html, heads.md and figures into a folder; returns the report's path."""
    return write_blocks(folder, TITLE, NAME, list(blocks(read.curves)), read)


def blocks(curves: Sequence[Curve], level: int = 2) -> Iterator[Block]:
    """The page's blocks; headings begin at a level."""
    yield Heading("How to read it", level)
    yield Paragraph(HOW)
    for curve in curves:
        every = mended(curve)
        if not every:
            continue
        yield Heading(curve.title, level)
        yield Items([_found(one, len(curve.haystacks)) for one in every])
        yield Items([*_agreed(every), *_reading(every)])
        caption = f"{curve.title}. {CAPTION}{READ if every[0].reading else ''}"
        yield group_maps(f"heads-{curve.slug}", every, caption)
        for one in every:
            yield Heading(words_of(one.base), level + 1)
            yield _table(one)


def _found(one: Mended, haystacks: int) -> str:
    """What is shown of an indexer, in a sentence or two."""
    name = words_of(one.base)
    least = (
        f"{name} scores {one.score:.2f}, exact Top-k {one.exact:.2f} and full attention {one.full:.2f} "
        f"on {haystacks} haystacks. "
    )
    total = len(one.groups)
    if one.helping:
        named = ", ".join(f"{_name(one.groups[n])} by {one.gain.value[n]:.2f} [{one.gain.low[n]:.2f}, {one.gain.high[n]:.2f}]" for n in one.helping)  # fmt: skip
        found = f"Exact selection in one group alone is shown to raise it in {len(one.helping)} of {total}: {named}."
    else:
        n = int(one.gain.value.argmax())
        found = (
            f"In none of {total} groups is exact selection alone shown to raise it; the largest difference is "
            f"{one.gain.value[n]:+.2f} [{one.gain.low[n]:+.2f}, {one.gain.high[n]:+.2f}], in {_name(one.groups[n])}."
        )
    lowered = [one.groups[n] for n in range(total) if one.shown[n] and one.gain.value[n] < 0]
    if lowered:
        found += f" It is shown to lower it in {', '.join(map(_name, lowered))}."
    return least + found


def _agreed(every: Sequence[Mended]) -> list[str]:
    """The groups that are shown under several indexers."""
    if len(every) < 2:
        return []
    counts: dict[Group, int] = {}
    for one in every:
        for n in one.helping:
            counts[one.groups[n]] = counts.get(one.groups[n], 0) + 1
    all_of = [group for group, count in counts.items() if count == len(every)]
    if not all_of:
        return [f"No group is shown to raise accuracy under all {len(every)} indexers."]
    return [f"Shown under all {len(every)} indexers: {', '.join(map(_name, sorted(all_of)))}."]


def _reading(every: Sequence[Mended]) -> list[str]:
    """Whether the groups that must be right are those that read the answer's key."""
    first = every[0]
    if not first.reading:
        return ["It is not known where the answers stand, and so not which heads read them."]
    helping = {one.groups[n] for one in every for n in one.helping}
    top = [first.groups[n] for n in first.reading[: max(3, len(helping))]]
    named = ", ".join(f"{_name(first.groups[n])} ({first.weight[n]:.2f})" for n in first.reading[:3])  # fmt: skip
    lines = [
        f"Full attention gives the answer's key most of its weight in {named}: the mean over a group's heads."
    ]
    if helping:
        both = sorted(helping & set(top))
        lines.append(
            f"Of the {len(helping)} groups shown under any indexer {len(both)} are among the {len(top)} that weigh "
            f"the answer's key most{': ' if both else ''}{', '.join(map(_name, both))}."
        )
    return lines


def _table(one: Mended) -> Table:
    order = sorted(range(len(one.groups)), key=lambda n: (one.p[n], -abs(one.gain.value[n])))
    place = {n: rank for rank, n in enumerate(one.reading, 1)}
    rows = [
        (
            _name(one.groups[n]),
            f"{one.score + one.gain.value[n]:.2f}",
            f"{one.gain.value[n]:+.2f} [{one.gain.low[n]:+.2f}, {one.gain.high[n]:+.2f}]",
            f"{one.better[n]} / {one.worse[n]}",
            f"{one.p[n]:.2g}",
            "yes" if one.shown[n] else "",
            f"{one.weight[n]:.3f} ({place[n]})" if n in place else "",
        )
        for n in order[:MOST]
    ]
    columns = ("group", "accuracy", "difference", "better / worse", "p", "shown", "weight (rank)")
    return Table(columns, rows)


def _name(group: Group) -> str:
    return f"layer {group[0]} group {group[1]}"
