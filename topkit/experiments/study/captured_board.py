"""The leaderboard of captures: recipes ranked by the mass and the recall of their lists, at equal bytes."""

# pyright: strict, reportUnknownVariableType=false, reportUnknownArgumentType=false
# (pyarrow comes without types.)
from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from topkit.experiments.study.blocks import Block, Heading, Items, Paragraph, as_markdown
from topkit.experiments.study.captured_units import LAYERS, Units, condensed, units_of
from topkit.experiments.study.citation import of_study
from topkit.experiments.study.goals import MASS, RECALL
from topkit.experiments.study.leaderboard import NAME, of_model
from topkit.experiments.study.measured_run import absent, measured_of
from topkit.experiments.study.reading import CAPTURED, STUDY, study_of
from topkit.experiments.study.standings import Standings, standings
from topkit.experiments.study.surprises import surprises

TITLE = "Published selectors at equal bytes, on captured tensors"
HOW = (
    "A recipe's score on a sample is its mean over layers, heads, positions and k; its score is the mean over samples, "
    "which are the units, since heads and layers of one sample hang together. Of a capture of one sample its layers "
    "are the units, and the ranks are of that text alone. Mass is the attention weight that a list keeps, recall the "
    "share of the exact Top-k, each against the model's own attention. Ranks admit ties: of all pairs in a table the "
    "differences per unit are tested (Student's paired test) with Holm's correction. `1 to 5` means: none is shown to "
    "be better than it, and it than all but four. A family stands by its best recipe, chosen on a third of the units "
    "and scored on the others. No model answered here: mass says how close the choice is, not whether anybody notices."
)


def units(folder: Path, study: Mapping[str, Any]) -> list[Units]:
    """Of each capture of a study's folder, its cells on its units."""
    return [
        units_of(condensed(folder / one["folder"], _kept(folder, one)), one)
        for one in study[CAPTURED]
    ]


def _kept(folder: Path, about: Mapping[str, Any]) -> Path:
    return folder / "curve" / f"{about['folder']}.parquet"


def blocks(folder: Path, study: Mapping[str, Any], level: int = 2) -> Iterator[Block]:
    """The page's blocks; headings begin at a level."""
    made = list(zip(study[CAPTURED], units(folder, study), strict=True))
    boards = [standings(a["name"], [u.curve], a, (MASS, RECALL)) for a, u in made]
    unit = " or ".join(dict.fromkeys(u.unit for _, u in made))
    yield Heading("Surprises", level)
    yield Items(surprises([board for its in boards for board in its], unit))
    yield Heading("How to read it", level)
    yield Paragraph(HOW)
    for (about, one), its in zip(made, boards, strict=True):
        if its:
            yield from of_model(its, _lead(about, one, its[0]), level)


def _lead(about: Mapping[str, Any], one: Units, board: Standings) -> str:
    count = f"{len(about['layers'])} layers of {about['samples']} sample{'s' if about['samples'] > 1 else ''}"
    exact = ", ".join(
        f"{value:.3f} at k = {k}" for value, k in zip(board.exact.get(MASS, ()), board.ks, strict=False)
    )  # fmt: skip
    alone = ", as there is one sample: of this text alone" if one.unit == LAYERS else ""
    return (
        f"{count}, {about['tokens']:,} tokens; k = {', '.join(board.ks)}; the units are its {one.unit}{alone}. "
        f"Mass of exact Top-k: {exact or 'not measured'}."
    )


def markdown_of(run: Path, figures: str, level: int = 2) -> str:
    """A folder's leaderboard as Markdown; figures: the path from the page to the folder of its figures."""
    return as_markdown(blocks(run, study_of(run / STUDY), level), figures)


def write_report(folder: Path, study: Mapping[str, Any]) -> Path:
    """Write report.html, leaderboard.md and figures into a study's folder; returns the report's path."""
    from topkit.experiments.study.block_page import write_page

    notes = [*_origins(study), *_unfinished(folder, study[CAPTURED])]
    made = [*blocks(folder, study), Heading("The run"), Items(notes)]
    return write_page(folder, NAME, TITLE, made, of_study(folder, study))


def _origins(study: Mapping[str, Any]) -> list[str]:
    return [f"{one['name']}: capture {one['capture'][:12]}." for one in study[CAPTURED]]


def _unfinished(folder: Path, captured: Sequence[Mapping[str, Any]]) -> list[str]:
    there = [one for one in captured if (folder / one["folder"] / "fidelity").is_dir()]
    return [
        f"Not finished: {one['name']}: {line}"
        for one in there
        for line in absent(*measured_of(folder / one["folder"]))
    ]
