"""The report of the study lightning-precision: sentences, a table and a figure of layers for each setting."""

# pyright: strict, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false
from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from topkit.experiments.runs.parts import write_whole
from topkit.experiments.study.blocks import (
    Block,
    Drawn,
    Heading,
    Items,
    Paragraph,
    Table,
    as_html,
    as_markdown,
)
from topkit.experiments.study.drawing import INK, drawing
from topkit.experiments.study.page import PAGE, save_figure
from topkit.experiments.study.precision import SUMMED, plain
from topkit.experiments.study.precision_sentences import learnt_on, sentences, target_budget
from topkit.experiments.study.precision_table import Gathered, gathered
from topkit.grammar import short
from topkit.indexers import exact
from topkit.indexers.base import Indexer

TITLE = "How well a lightning indexer finds what attention reads"
MARKDOWN = "precision.md"
HOW = (
    "An indexer keeps one list of k keys for all heads of a layer. Precision is the share of a list that is kept: "
    "of each head's own Top-k (`own`), and of the common one, the Top-k of the attention summed over the heads "
    "(`common`), which the indexer is trained for. What is missing of the own lists falls into three parts that add "
    "up: sharing, what even the common list lacks; scoring, what the indexer's list in float32 lacks beside it; "
    "quantisation, what its low precision costs. Means over heads, positions of question and answer (of text, its "
    "last tokens), layers and samples; positions that see no more than k keys are left out. Intervals are Student's, "
    "over samples, at 95 %. Untrained indexers have lists a head, or one a layer where `shared` says so; they read as "
    "many bytes as the study's budgets say."
)
CAPTION = (
    "The share of the common list that is kept in each layer, {title}, k = {budget}. Grey: lists of each head's own. "
    "Dashed: the exact Top-k of each head, which is not the common list either."
)


def write_report(folder: Path, study: Mapping[str, Any]) -> Path:
    """Write report.html, precision.md and figures into a study's folder; returns the report's path."""
    every = gathered(folder / "precision", study["settings"])
    made = list(blocks(every, study))
    drawn = {
        block: save_figure(folder / "figures", block.name, block.draw(), block.caption)
        for block in made
        if isinstance(block, Drawn)
    }
    body = [drawn[block] if isinstance(block, Drawn) else as_html(block) for block in made]
    page = PAGE.format(title=TITLE, body="\n".join(body))
    markdown = f"# {TITLE}\n\n{as_markdown(made, 'figures')}\n"
    for name, text in (("report.html", page), (MARKDOWN, markdown)):
        write_whole(folder / name, partial(_write, text), parents=False)
    return folder / "report.html"


def _write(text: str, path: Path) -> None:
    path.write_text(text, encoding="utf-8")


def blocks(every: list[Gathered], study: Mapping[str, Any]) -> Iterator[Block]:
    """The page's blocks."""
    yield Paragraph(str(study.get("about", "")))
    yield Heading("What was found")
    for setting in every:
        yield Items([f"{setting.title}: {line}" for line in sentences(setting)])
    absent = _absent(every, study)
    if absent:
        yield Items(absent)
    yield Heading("How to read it")
    yield Paragraph(HOW)
    for number, setting in enumerate(every):
        yield Heading(setting.title)
        for budget in setting.budgets:
            yield Heading(f"k = {budget}", 3)
            yield _table(setting, budget)
        at = target_budget(setting)
        caption = CAPTION.format(title=setting.title, budget=at)
        yield Drawn(f"layers-{number + 1}", partial(_layers, setting, at), caption)
    yield Heading("The run")
    yield Items([f"{name}: {value}" for name, value in study.items() if isinstance(value, str)])


def _absent(every: list[Gathered], study: Mapping[str, Any]) -> list[str]:
    """A line for each setting of which samples are not there."""
    there = {one.title: len(next(iter(one.values.values()))) for one in every}
    return [
        f"Not finished: {setting['title']} has {there.get(setting['title'], 0)} of {len(setting['parts'])} samples."
        for setting in study["settings"]
        if there.get(setting["title"], 0) < len(setting["parts"])
    ]


def _table(setting: Gathered, budget: str) -> Table:
    columns = ["indexer", "learnt on", "bytes a token", "own", "common", "95 %", "in the worst layer",
               "of fp32's list", "mass", "sharing", "scoring", "quantisation"]  # fmt: skip
    here = [one for one in setting.indexers if setting.has(one, budget)]
    order = sorted(here, key=lambda one: (one not in (SUMMED, exact()), plain(one) is None, repr(one)))  # fmt: skip
    return Table(columns, [_row(setting, one, budget) for one in order])


def _row(setting: Gathered, one: Indexer, budget: str) -> list[str]:
    low, high = setting.interval(one, budget, "summed")
    layer, worst = setting.worst(one, budget)
    loss = setting.loss(one, budget)
    losses = (loss.sharing, loss.scoring, loss.quantisation) if loss else (np.nan,) * 3
    means = {
        name: setting.mean(one, budget, name) for name in ("own", "summed", "fp32", "mass", "bytes")
    }
    return [
        f"`{short(one)}`",
        learnt_on(one),
        f"{means['bytes']:.4g}",
        _number(means["own"]),
        _number(means["summed"]),
        "" if low is None or np.isnan(low) else f"{low:.3f} to {high:.3f}",
        f"{worst:.3f} ({layer})" if np.isfinite(worst) else "",
        *(_number(x) for x in (means["fp32"], means["mass"], *losses)),
    ]


def _number(value: float) -> str:
    return f"{value:.3f}" if np.isfinite(value) else ""


def _layers(setting: Gathered, budget: str) -> Figure:
    """The share of the common list by layer, a line an indexer."""
    with drawing():
        figure = Figure(figsize=(11, 4.4))
        axes = figure.subplots()
        figure.subplots_adjust(left=0.06, right=0.66, bottom=0.12, top=0.95)
        colours = iter(["#0b4f8a", "#b3541e", "#1b7f5c", "#8e3b7a", "#b08900", "#4d2f8f"] * 4)
        of_weights: dict[Indexer, str] = {}
        for one in setting.indexers:
            if one == SUMMED or not setting.has(one, budget):
                continue
            name = "fp32" if setting.loss(one, budget) is None and plain(one) is not None else "summed"  # fmt: skip
            twin = plain(one)
            style: dict[str, Any] = {}
            if one == exact():
                style = {"color": INK, "ls": (0, (5, 2)), "lw": 1.1}
            elif twin is None:
                style = {"color": "0.65", "lw": 0.9}
            else:
                # One colour for the weights, full for float32, dotted for lower precision.
                colour = of_weights.setdefault(twin, next(colours))
                style = {"color": colour, "lw": 1.5 if one == twin else 0.8, "ls": "-" if one == twin else ":"}  # fmt: skip
            axes.plot(setting.layers, setting.by_layer(one, budget, name), marker=".", label=short(one), **style)  # fmt: skip
        axes.set_xlabel("layer")
        axes.set_ylabel("share of the common list that is kept")
        axes.set_ylim(0, 1.02)
        axes.set_xticks(setting.layers)
        figure.legend(*axes.get_legend_handles_labels(), loc="center left", bbox_to_anchor=(0.67, 0.5), fontsize=7)  # fmt: skip
        return figure
