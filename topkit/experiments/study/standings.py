"""Standings: the recipes of a model at a budget of bytes, by accuracy and by mass, with the ranks left open."""

# pyright: strict
from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from topkit.experiments.runs.cells import Cell
from topkit.experiments.study.curve import Curve
from topkit.experiments.study.equal_recipes import KEY_BYTES, RAN
from topkit.experiments.study.goals import ACCURACY, MASS, Goal, goal_of, values
from topkit.experiments.study.kinds import family_of, kind_of
from topkit.experiments.study.stats import Array
from topkit.grammar import short
from topkit.indexers.base import Indexer
from topkit.indexers.equal_bytes import parse_byte_budget
from topkit.indexers.spec import recorded

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Standings:
    """C recipes of a model at a budget of bytes and K numbers of keys, each as it ran.

    reads [C]: bytes a token and layer, counted; exact: what exact Top-k reaches of each goal, by k; left_out: a
    line for each recipe that is not there.
    """

    model: str
    settings: tuple[str, ...]
    haystacks: int
    bytes: str
    key_bytes: float
    ks: tuple[str, ...]
    recipes: tuple[Indexer, ...]
    ran: tuple[tuple[Indexer, ...], ...]
    families: tuple[str, ...]
    reads: Array
    goals: Mapping[str, Goal]
    exact: Mapping[str, Array]
    left_out: tuple[str, ...]

    @property
    def budget(self) -> float:
        """Bytes a token and layer; of recipes as they are written, none."""
        return parse_byte_budget(self.bytes).of(self.key_bytes) if self.bytes else np.inf

    def name(self, place: int) -> str:
        """A recipe as it ran; where that depends on k or length, the first of its forms."""
        first, *others = self.ran[place]
        return short(first) + (", ..." if others else "")


def standings(
    model: str,
    curves: Sequence[Curve],
    about: Mapping[str, Any],
    goals: Sequence[str] = (ACCURACY, MASS),
) -> list[Standings]:
    """The standings of a model, one a budget of bytes, by its curves and what its study.json says of recipes."""
    rows: list[Row] = about.get(RAN, [])
    budgets = dict.fromkeys(row["bytes"] for row in rows)
    return [
        _of_budget(model, curves, [row for row in rows if row["bytes"] == budget], about, goals)
        for budget in budgets
    ]


def _of_budget(
    model: str,
    curves: Sequence[Curve],
    rows: Sequence[Row],
    about: Mapping[str, Any],
    goals: Sequence[str],
) -> Standings:
    by_recipe: dict[str, list[Row]] = {}
    for row in rows:
        by_recipe.setdefault(row["recipe"], []).append(row)
    every = Counter(tuple(dict.fromkeys(row["k"] for row in its)) for its in by_recipe.values())
    ks = every.most_common(1)[0][0]
    places = [{(cell.name, str(cell.budget or "")): p for p, cell in enumerate(c.cells)} for c in curves]  # fmt: skip
    there, lines, exact = dict[str, list[list[int]]](), list[str](), dict[str, Array]()
    for recipe, its in by_recipe.items():
        found = _places(its, ks, curves, places)
        if isinstance(found, str):
            lines.append(f"{short(recorded(recipe))} {found}")
        elif _kind(recipe) == "oracle":
            exact = {goal: values(curves, [found], goal)[0] for goal in goals}
        else:
            there[recipe] = found
    recipes = [recorded(recipe) for recipe in there]
    families = tuple(family_of(Cell(recipe)) for recipe in recipes)
    every_place = list(there.values())
    return Standings(
        model=model,
        settings=tuple(curve.setting for curve in curves),
        haystacks=sum(len(curve.haystacks) for curve in curves),
        bytes=rows[0]["bytes"],
        key_bytes=float(about.get(KEY_BYTES) or np.nan),
        ks=ks,
        recipes=tuple(recipes),
        ran=tuple(
            tuple(dict.fromkeys(recorded(row["ran"]) for row in by_recipe[recipe])) for recipe in there
        ),
        families=families,
        reads=_reads(curves, every_place),
        goals={
            goal: made
            for goal in goals
            if (made := goal_of(curves, every_place, families, goal)) is not None
        },
        exact=exact,
        left_out=tuple(lines),
    )  # fmt: skip


def _kind(recipe: str) -> str:
    return kind_of(Cell(recorded(recipe)))


def _places(
    rows: Sequence[Row],
    ks: Sequence[str],
    curves: Sequence[Curve],
    places: Sequence[Mapping[tuple[str, str], int]],
) -> list[list[int]] | str:
    """Where a recipe's cells stand in each curve, by k; or why it is left out."""
    of = {(row["length"], row["k"]): row for row in rows}
    over = [row for row in rows if row.get("over")]
    if over:
        return over[0]["why"]
    if any((curve.length, k) not in of for curve in curves for k in ks):
        return f"ran at other k than {', '.join(ks)}"
    found = [
        [at.get((of[curve.length, k]["ran"], k)) for k in ks]
        for curve, at in zip(curves, places, strict=True)
    ]
    whole = [[place for place in its if place is not None] for its in found]
    return whole if all(len(its) == len(ks) for its in whole) else "was not run yet"


def _reads(curves: Sequence[Curve], every: Sequence[list[list[int]]]) -> Array:
    """Bytes a token and layer that choosing read [C]: the mean over k and curves."""
    each = [curve.mean("bytes_read") / _tokens(curve) for curve in curves]
    means = [float(np.mean([read[places[n]] for n, read in enumerate(each)])) for places in every]
    return np.array(means)


def _tokens(curve: Curve) -> float:
    """What a prompt holds on average, or its label where nobody counted."""
    counted = curve.tokens[np.isfinite(curve.tokens)]
    return float(counted.mean()) if counted.size else float(curve.length)
