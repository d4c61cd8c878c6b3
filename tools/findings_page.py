"""The parts of docs/findings.md that are made from results: what each study shows, and the cells that decide it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from front_page import (
    BOOKS,
    ONE_MODEL,
    ORACLES,
    RULER,
    found,
    needles_at_4096,
    of_two_models,
    place_of,
)

from topkit.cli.listing import markdown
from topkit.experiments.study.findings import Findings
from topkit.experiments.study.kinds import EXACT, kind_of, name_of
from topkit.experiments.study.models_compared import sentences as carried
from topkit.experiments.study.sentences import GOOD, UNDECIDED, WORSE, judged, said
from topkit.grammar import short

MARGIN = 0.05
# What scores less with every length or model is named, and has no row.
FLOOR = 0.1
ORDER = {GOOD: "as good", UNDECIDED: "undecided", WORSE: "worse"}


def smollm2() -> str:
    """What each length and RULER's task show, exact Top-k by k, the indexers against it; what running text loses."""
    lengths = [*found(ONE_MODEL), *found(RULER)]
    parts = [told(one) for one in lengths]
    parts += ["**Exact Top-k by the number of keys**", markdown(_exact_by_k(lengths))]
    first = lengths[0]
    parts += [
        f"**Each indexer at k = {first.budget} minus exact Top-k at k = {first.budget}.** *As good*: shown to lose "
        f"at most {MARGIN:g} at {first.curve.length:,} tokens, where most haystacks were asked. Recall and mass are "
        "of that length.",
        *_against_exact(lengths),
        "**The same indexers at other k**",
        markdown(_other_budgets(lengths)),
        *_running_text(),
    ]
    return "\n\n".join(parts)


def _running_text() -> list[str]:
    """What each indexer at the first budget costs in nats a token, least first."""
    (one,) = found(BOOKS)
    curve, more = one.curve, one.nll_to_dense
    if more is None:
        return []
    places = [
        *curve.where("real", "control", budget=curve.budget),
        place_of(curve, EXACT, curve.budget),
    ]
    places.sort(key=lambda at: float(more.value[at]))
    lines = [
        {
            "indexer": f"`{name_of(curve.cells[at])}`",
            "NLL minus full attention's": said(more[at], digits=3, signed=True),
            "KL": f"{one.losses['kl'].value[at]:.3f}",
            **{name: f"{curve.mean(name)[at]:.2f}" for name in ("recall", "mass")},
        }
        for at in places
    ]
    words = (
        f"**Running text**: 64 tokens of a book behind {curve.length:,}, {len(curve.haystacks)} texts; nats a token at "
        f"k = {curve.budget}, each with its 95 % interval over texts."
    )
    return [words, markdown(lines)]


def _exact_by_k(lengths: Sequence[Findings]) -> list[dict[str, str]]:
    lines = list[dict[str, str]]()
    for k in lengths[0].curve.budgets:
        if EXACT in (cell.indexer for cell in lengths[0].curve.cells if cell.budget == k):
            scores = {
                _tokens(one): said(one.accuracy[place_of(one.curve, EXACT, k)]) for one in lengths
            }
            lines.append({"k": str(k), **scores})
    full = {_tokens(one): said(one.accuracy[place_of(one.curve, None, None)]) for one in lengths}
    return [*lines, {"k": "all keys", **full}]


def _against_exact(lengths: Sequence[Findings]) -> list[str]:
    """A table of gaps grouped by verdict, and the names of what fails at every length."""
    first, rows, failed = lengths[0], list[tuple[int, float, dict[str, str]]](), list[str]()
    for place in first.compared("real", "control"):
        cell = first.curve.cells[place]
        places = [one.curve.cells.index(cell) for one in lengths]
        pairs = list(zip(lengths, places, strict=True))
        if max(float(one.accuracy.value[at]) for one, at in pairs) < FLOOR:
            failed.append(f"`{name_of(cell)}`")
            continue
        word, gap = _verdict(first, place)
        line = {"indexer": f"`{name_of(cell)}`", "verdict": word}
        line |= {_tokens(one): _gap(one, at) for one, at in pairs}
        line |= {name: f"{first.curve.mean(name)[place]:.2f}" for name in ("recall", "mass")}
        rows.append((list(ORDER.values()).index(word), -gap, line))
    table = markdown([line for *_, line in sorted(rows, key=lambda row: row[:2])])
    return [table, f"Below {FLOOR:g} at every length: {', '.join(failed)}."] if failed else [table]


def _other_budgets(lengths: Sequence[Findings]) -> list[dict[str, str]]:
    first, lines = lengths[0], list[dict[str, str]]()
    cells = [
        cell
        for cell in first.curve.cells
        if kind_of(cell) == "real" and cell.budget != first.budget
    ]
    for cell in sorted(cells, key=lambda cell: (name_of(cell), str(cell.budget).zfill(9))):
        places = [one.curve.cells.index(cell) for one in lengths]
        pairs = list(zip(lengths, places, strict=True))
        gaps = {_tokens(one): _gap(one, at) for one, at in pairs}
        lines.append({"indexer": f"`{name_of(cell)}`", "k": str(cell.budget), **gaps})
    return lines


def carry_over() -> str:
    """Whether the order of indexers carries over, and how each stands to exact Top-k with both models."""
    both = of_two_models()
    sides = [(name, Findings(curve), k) for name, curve, k in needles_at_4096(both)]
    rows, failed, worse = list[tuple[float, dict[str, str]]](), list[str](), list[str]()
    for indexer in both.indexers:
        places = [one.curve.place(indexer, k) for _, one, k in sides]
        at = [place for place in places if place is not None]
        name = f"`{short(indexer)}`"
        if (
            max(float(one.accuracy.value[p]) for (_, one, _), p in zip(sides, at, strict=True))
            < FLOOR
        ):
            failed.append(name)
            continue
        line, words, gap = {"indexer": name}, list[str](), 0.0
        for (model, one, k), place in zip(sides, at, strict=True):
            word, gap = _verdict(one, place)
            words.append(word)
            line[f"{model}, k = {k}"] = f"{_gap(one, place)} {word}"
        if set(words) == {ORDER[WORSE]}:
            worse.append(name)
        else:
            rows.append((-gap, line))
    each = "; ".join(
        f"{one.curve.title}: {len(one.curve.haystacks)} haystacks, {int(one.curve.questions.sum())} questions, "
        f"exact Top-k scores {said(one.accuracy[place_of(one.curve, EXACT, k)])}"
        for _, one, k in sides
    )
    return "\n\n".join(
        [
            f"({each}.)",
            "\n".join(_bullets(carried(both), map(short, both.indexers))),
            f"Accuracy minus that of exact Top-k, of each indexer that is not worse with both models (*as good*: shown "
            f"to lose at most {MARGIN:g}):",
            markdown([line for _, line in sorted(rows, key=lambda row: row[0])]),
            f"Worse with both: {', '.join(worse)}.",
            f"Below {FLOOR:g} with both: {', '.join(failed)}.",
        ]
    )


def findings() -> str:
    """What the studies of the bundled model show, and the cells of the first."""
    (first,), others = found(ORACLES), found("tasks")
    curve, lines = first.curve, list[dict[str, str]]()
    for place in curve.where("real", "control", "oracle", budget=curve.budget):
        if kind_of(curve.cells[place]) != "oracle" or place == curve.place(EXACT, curve.budget):
            lines.append(
                {
                    "indexer": f"`{name_of(curve.cells[place])}`",
                    "accuracy": said(first.accuracy[place]),
                    "recall": f"{curve.mean('recall')[place]:.2f}",
                    "mass": f"{curve.mean('mass')[place]:.2f}",
                    "KiB read, a step and layer": f"{curve.mean('bytes_read')[place] / 1024:.0f}",
                }
            )
    lines.sort(key=lambda line: line["accuracy"], reverse=True)
    return "\n\n".join([told(first), markdown(lines), *(told(one) for one in others)])


def told(one: Findings) -> str:
    questions, haystacks = int(one.curve.questions.sum()), len(one.curve.haystacks)
    title = f"**{one.curve.title}** ({questions} questions, {haystacks} haystacks):"
    return "\n".join([title, "", *_bullets(one.sentences(), map(name_of, one.curve.cells))])


def _bullets(sentences: Iterable[str], names: Iterable[str]) -> list[str]:
    """A line each, names of indexers as code."""
    longest = sorted({name for name in names if "(" in name}, key=len, reverse=True)
    name = re.compile("|".join(map(re.escape, longest)))
    return [f"- {name.sub(lambda found: f'`{found[0]}`', line)}" for line in sentences]


def _tokens(one: Findings) -> str:
    ruler = "RULER, " if one.curve.task.startswith("ruler") else ""
    return f"{ruler}{one.curve.length:,} tokens"


def _verdict(one: Findings, place: int) -> tuple[str, float]:
    """A cell against exact Top-k at its budget: in a word, and by how much."""
    gap = one.to_exact(place)
    assert gap is not None
    word = judged(gap, MARGIN)
    return ORDER.get(word, ORDER[GOOD]), float(gap.value)


def _gap(one: Findings, place: int) -> str:
    gap = one.to_exact(place)
    return "" if gap is None else said(gap, signed=True)
