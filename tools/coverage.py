"""Say how often the intervals of a study hold the truth: python tools/coverage.py [STUDIES].

Simulated studies: cells that differ in accuracy and in how the questions of one haystack hang together,
on the same haystacks. Differences are to the cell of 0.95 and to that of 0.5, of one kind with the cell
compared; haystacks and questions that are hard for one cell are hard for another.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaincinv, ndtr

from topkit.cli.exits import exit_code
from topkit.cli.listing import markdown
from topkit.errors import InputError
from topkit.experiments.study import stats
from topkit.experiments.study.stats import Array, Interval

TRUTHS = (0.02, 0.05, 0.2, 0.5, 0.8, 0.95, 0.98)
BASES = (0.95, 0.5)
HAYSTACKS = (16, 24, 64, 128)
QUESTIONS = 4
STUDIES = 2000
SHARED = 0.5  # of the variance of what makes a haystack or a question hard, by all cells
WORDINGS = 40
BAND = (0.93, 0.97)
# Where fewer haystacks are expected to be right, or wrong, the lattice of so few decides the coverage.
DECIDING = 4.5
# How the questions of a haystack hang together: the beta-binomial's correlation within haystacks.
KINDS = {
    "independent": 0.0,
    "beta-binomial, 0.3": 0.3,
    "a wording each, which decides": 1.0,
    "shared wordings, which decide": 1.0,
}


@dataclass(frozen=True)
class Setting:
    """One kind of cells alone, or every kind side by side in one study (mixed)."""

    kinds: tuple[str, ...]
    haystacks: int
    truths: tuple[float, ...] = TRUTHS


def settings() -> Iterator[Setting]:
    for haystacks in HAYSTACKS:
        yield from (Setting((kind,), haystacks) for kind in KINDS)
        yield Setting(tuple(KINDS), haystacks)


def near(truths: Sequence[float], rng: np.random.Generator) -> Array:
    """Accuracies near the truths, so that no luck of the lattice of n questions decides."""
    odds = np.log(np.array(truths) / (1 - np.array(truths))) + rng.uniform(-0.3, 0.3, len(truths))
    return 1 / (1 + np.exp(-odds))


def hardness(cells: int, shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    """Uniform numbers for each cell and place, alike over cells."""
    shared, own = rng.normal(size=(1, *shape)), rng.normal(size=(cells, *shape))
    return ndtr(np.sqrt(SHARED) * shared + np.sqrt(1 - SHARED) * own)


def chances(
    kind: str, truth: Array, haystacks: int, rng: np.random.Generator
) -> tuple[Array, Array]:
    """The true accuracies [C], and the chance of a right answer on each haystack [C, H].

    With shared wordings the truth is the mean over the task's list of them, of which each haystack
    draws one.
    """
    within = KINDS[kind]
    if kind.startswith("shared"):
        right = np.clip(np.round(truth * WORDINGS), 1, WORDINGS - 1)
        rank = hardness(len(truth), (WORDINGS,), rng).argsort(1).argsort(1)
        drawn = rng.integers(WORDINGS, size=haystacks)
        return right / WORDINGS, (rank < right[:, None])[:, drawn].astype(float)
    hard = hardness(len(truth), (haystacks,), rng)
    if within == 0:
        return truth, np.broadcast_to(truth[:, None], hard.shape)
    if within == 1:
        return truth, (hard < truth[:, None]).astype(float)
    total = (1 - within) / within
    return truth, betaincinv((truth * total)[:, None], ((1 - truth) * total)[:, None], 1 - hard)


def study(setting: Setting, rng: np.random.Generator) -> tuple[Array, Array]:
    """The true accuracies [C] and the rates [C, H] of one simulated study; kinds stand in their order."""
    drawn = [chances(k, near(setting.truths, rng), setting.haystacks, rng) for k in setting.kinds]
    truth, chance = (np.concatenate(part) for part in zip(*drawn, strict=True))
    hard = hardness(len(truth), (setting.haystacks, QUESTIONS), rng)
    return truth, (hard < chance[:, :, None]).mean(-1)


def covered(setting: Setting, studies: int, seed: int = 0) -> dict[str, Array]:
    """The share of studies whose interval holds the truth, by what it is of: [kinds, truths].

    NaN for the difference of a cell to itself.
    """
    rng = np.random.default_rng(seed)
    questions = np.full(setting.haystacks, float(QUESTIONS))
    count, truths = len(setting.kinds), len(setting.truths)
    hits: dict[str, Array] = {}

    def add(name: str, held: Array) -> None:
        hits[name] = hits.get(name, 0) + held.reshape(count, truths) / studies

    for _ in range(studies):
        truth, rates = study(setting, rng)
        add("accuracy", inside(truth, stats.accuracy(rates, questions)))
        for level in BASES:
            bases = np.arange(count) * truths + setting.truths.index(level)
            held = np.full(len(truth), np.nan)
            for kind, base in enumerate(bases):
                own = np.arange(kind * truths, (kind + 1) * truths)
                gap = stats.difference(rates[own], questions, int(base) - kind * truths)
                held[own] = inside(truth[own] - truth[base], gap)
            held[bases] = np.nan
            add(f"minus {level:g}", held)
    return hits


def inside(truth: Array, interval: Interval) -> Array:
    return ((interval.low <= truth) & (truth <= interval.high)).astype(float)


def main(words: Sequence[str]) -> None:
    if len(words) > 1 or not all(word.isdigit() and int(word) > 0 for word in words):
        raise InputError(
            "give the number of studies a setting, or nothing: python tools/coverage.py 2000"
        )
    studies = int(words[0]) if words else STUDIES
    rows, every, outside, decided, pooled = [], 0, 0, list[float](), list[float]()
    for setting in settings():
        for of, rates in covered(setting, studies).items():
            for kind, line in zip(setting.kinds, rates, strict=True):
                mixed = "mixed: " if len(setting.kinds) > 1 else ""
                numbers = {f"{t:g}": _number(x) for t, x in zip(setting.truths, line, strict=True)}
                pooled.append(float(np.nanmean(line)))
                numbers["all"] = _number(pooled[-1])
                decided += [float(x) for x in line[deciding(setting, of)] if np.isfinite(x)]
                rows.append(
                    {"of": of, "haystacks": str(setting.haystacks), "cells": mixed + kind} | numbers
                )
                known = line[np.isfinite(line)]
                every += len(known)
                outside += int(((known < BAND[0]) | (known > BAND[1])).sum())
    rows.sort(key=lambda row: row["of"])
    print(markdown(rows))
    error = np.sqrt(0.95 * 0.05 / studies)
    print(
        f"\n{studies} studies a row, {QUESTIONS} questions a haystack; standard error {error:.4f}. "
        f"{every - outside} of {every} lie in {BAND[0]:g} to {BAND[1]:g}; an asterisk marks the others. "
        f"Over all truths of a row: {min(pooled):.3f} to {max(pooled):.3f}."
    )
    if decided:
        print(
            f"The {len(decided)} that {DECIDING:g} haystacks or more decide: {min(decided):.3f} to "
            f"{max(decided):.3f}."
        )


def deciding(setting: Setting, of: str) -> NDArray[np.bool_]:
    """At which truths so many haystacks are right, and so many wrong, of both cells of a difference."""
    base = float(of.removeprefix("minus ")) if of.startswith("minus") else 0.5
    ends = np.array([[t, 1 - t, base, 1 - base] for t in setting.truths])
    return setting.haystacks * ends.min(1) > DECIDING


def _number(share: float) -> str:
    if np.isnan(share):
        return ""
    return f"{share:.3f}{'' if BAND[0] <= share <= BAND[1] else '*'}"


if __name__ == "__main__":
    sys.exit(exit_code(lambda: main(sys.argv[1:])))
