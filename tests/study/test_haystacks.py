"""Curves of several seeds are one: what is cut apart joins to what it was."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from topkit.experiments.runs.cells import Cell
from topkit.experiments.study.curve import Curve
from topkit.experiments.study.curves import COUNTS, FIDELITY, LOSSES
from topkit.experiments.study.haystacks import joined
from topkit.indexers.budget import parse_budgets
from topkit.indexers.spec import parse

CELLS = (
    Cell(),
    *(Cell(parse(s), parse_budgets(4)[0]) for s in ("exact", "sign", "quest", "random")),
)
COUNT = 7


def random_curve(rng: np.random.Generator) -> Curve:
    def numbers(*shape: int) -> NDArray[np.float64]:
        return rng.random(shape)

    def each(names: tuple[str, ...]) -> dict[str, NDArray[np.float64]]:
        return {name: numbers(len(CELLS), COUNT) for name in names}

    return Curve(
        task="niah-single",
        length=1024,
        sparse_from="question",
        measure="score",
        cells=CELLS,
        haystacks=tuple(range(COUNT)),
        questions=np.ceil(4 * numbers(COUNT)),
        rates=numbers(len(CELLS), COUNT),
        token_rates=numbers(len(CELLS), COUNT),
        losses=each(LOSSES),
        fidelity=each(FIDELITY),
        answer_tokens=3.0,
        heads={CELLS[1]: np.ones((2, 3))},
        held_out=tuple(x > 0.5 for x in numbers(COUNT)),
        counts=each(COUNTS),
        tokens=1000 * numbers(COUNT),
    )


def part(value: Any, places: slice) -> Any:
    """The haystacks of a curve's field: the last axis of its arrays."""
    if isinstance(value, dict):
        return {name: part(x, places) for name, x in value.items()}
    if isinstance(value, np.ndarray):
        return value[..., places] if value.shape[-1] == COUNT else value
    return value[places] if isinstance(value, tuple) and len(value) == COUNT else value


def cut(curve: Curve, places: slice, order: list[int]) -> Curve:
    """Some haystacks of a curve, its cells in another order."""
    its: dict[str, Any] = {f.name: part(getattr(curve, f.name), places) for f in fields(curve)}
    for name in ("rates", "token_rates"):
        its[name] = its[name][order]
    for name in ("losses", "fidelity", "counts"):
        its[name] = {metric: x[order] for metric, x in its[name].items()}
    return replace(curve, **{**its, "cells": tuple(curve.cells[n] for n in order)})


def test_what_is_cut_apart_joins_to_what_it_was() -> None:
    whole = random_curve(np.random.default_rng(0))
    first = cut(whole, slice(0, 3), [0, 1, 2, 3, 4])
    second = cut(whole, slice(3, COUNT), [4, 2, 0, 1, 3])
    (again,) = joined([[first], [second]])
    for field in fields(Curve):
        np.testing.assert_equal(getattr(again, field.name), getattr(whole, field.name), field.name)


def test_cells_that_a_seed_lacks_are_left_out_and_other_settings_stand_apart() -> None:
    whole = random_curve(np.random.default_rng(1))
    fewer = cut(whole, slice(0, 3), [0, 2])
    other = replace(whole, length=2048)
    made = joined([[whole], [fewer, other]])
    assert [(curve.length, len(curve.cells), len(curve.haystacks)) for curve in made] == [
        (1024, 2, COUNT + 3),
        (2048, 5, COUNT),
    ]
    np.testing.assert_equal(made[0].rates[:, :COUNT], whole.rates[[0, 2]])
