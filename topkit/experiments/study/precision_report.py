"""The report of the study lightning-precision: sentences, a table and a figure of layers for each setting."""

# pyright: strict
from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from topkit.experiments.study.block_page import write_page
from topkit.experiments.study.blocks import Block, Drawn, Heading, Items, Paragraph, Table
from topkit.experiments.study.citation import of_study
from topkit.experiments.study.lines import Series, lines
from topkit.experiments.study.precision import SUMMED, plain
from topkit.experiments.study.precision_sentences import learnt_on, sentences, target_budget
from topkit.experiments.study.precision_table import Gathered, gathered
from topkit.grammar import short
from topkit.indexers import exact
from topkit.indexers.base import Indexer

TITLE = "How well a lightning indexer finds what attention reads"
NAME = "precision"
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
    "Dotted, without weights: the exact Top-k of each head, which is not the common list either."
)


def write_report(folder: Path, study: Mapping[str, Any]) -> Path:
    """Write report.html, precision.md and figures into a study's folder; returns the report's path."""
    every = gathered(folder / "precision", study["settings"])
    return write_page(folder, NAME, TITLE, list(blocks(every, study)), of_study(folder, study))


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
        yield _layers(setting, at, f"layers-{number + 1}", caption)
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


def _layers(setting: Gathered, budget: str, name: str, caption: str) -> Drawn:
    """The share of the common list by layer: a colour the weights, dotted at lower precision, grey the untrained."""
    made: list[Series] = []
    for one in setting.indexers:
        if one == SUMMED or not setting.has(one, budget):
            continue
        twin = plain(one)
        of_own = setting.loss(one, budget) is None and twin is not None
        values = setting.by_layer(one, budget, "fp32" if of_own else "summed")
        points = [
            (float(layer), float(value))
            for layer, value in zip(setting.layers, values, strict=True)
        ]
        of = "" if twin is None else short(twin)
        dashed = one == exact() or (twin is not None and one != twin)
        faint = twin is None and one != exact()
        made.append(Series(short(one), points, of=of, faint=faint, dashed=dashed))
    return lines(name, made, caption, x="layer", y="share of the common list that is kept")
