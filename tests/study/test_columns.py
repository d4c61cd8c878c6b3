"""Curves from columns are those that a walk over rows makes, whatever is missing of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from topkit.experiments.study.columns import by_number, missing, numbered, numbers
from topkit.experiments.study.curves import curves
from topkit.experiments.study.kinds import name_of


def test_rows_are_numbered_in_the_order_of_their_first():
    table = pa.table({"a": ["y", "x", "y", None, "x", None], "b": [1, 1, 1, 2, 3, 2]})
    values, of = numbered(table, ("a", "b"))
    assert values == [("y", 1), ("x", 1), (None, 2), ("x", 3)]
    assert of.tolist() == [0, 1, 0, 2, 3, 2]
    assert [rows.tolist() for rows in by_number(of, 4)] == [[0, 2], [1], [3, 5], [4]]
    encoded = pa.table({"a": table["a"].combine_chunks().dictionary_encode(), "b": table["b"]})
    assert numbered(encoded, ("a", "b"))[1].tolist() == of.tolist()


def test_what_is_no_number_is_nan():
    table = pa.table({"a": [1, None], "b": [True, False], "c": pa.nulls(2), "d": [np.nan, 2.0]})
    assert np.array_equal(numbers(table, "a"), [1, np.nan], equal_nan=True)
    assert numbers(table, "b").tolist() == [1, 0]
    assert np.isnan(numbers(table, "c")).all() and np.isnan(numbers(table, "none")).all()
    there = {name: not missing(table, name) for name in ("a", "b", "c", "d", "none")}
    assert there == {"a": True, "b": True, "c": False, "d": True, "none": False}


def walked(rows: list[dict[str, Any]]) -> dict[str, dict[int, float]]:
    """Of the rows of one curve, the scores by name and haystack that every cell has."""
    scores: dict[str, dict[int, float]] = {}
    for row in rows:
        name = "sign()" if row["indexer"].startswith("sign") else row["indexer"]
        scores.setdefault(name, {})[row["haystack"]] = row["score"]
    shared = set.intersection(*(set(its) for its in scores.values()))
    return {name: {h: its[h] for h in sorted(shared)} for name, its in scores.items()}


@pytest.mark.parametrize("seed", range(3))
def test_curves_hold_what_the_rows_say(seed: int):
    """Rows in any order, a recipe under two names, haystacks that a cell lacks, heads of unlike layers."""
    rng = np.random.default_rng(seed)
    rows, heads = list[dict[str, Any]](), list[dict[str, Any]]()
    for task in ("b", "a"):
        setting = {"task": task, "length": 64, "sparse_from": "question"}
        for indexer, budget in (("dense", ""), ("exact()", "4"), ("sign()", "4"), ("sign:center=False", "4")):  # fmt: skip
            cell = {**setting, "indexer": indexer, "budget": budget}
            # The second name goes on where the first one ends.
            for haystack in range(*{"sign()": (0, 3), "sign:center=False": (3, 6)}.get(indexer, (0, 7))):  # fmt: skip
                counts = {"questions": 2, "answer_tokens": 3.0, "haystack": haystack}
                rows.append({**cell, **counts, "score": float(rng.random())})
            for layer in range(2 if indexer == "sign()" else 4):
                recall = None if layer == 1 else float(rng.random())
                heads.append({**cell, "layer": layer, "head": layer, "recall": recall})
    rng.shuffle(rows)  # type: ignore[arg-type]
    made = curves(pa.Table.from_pylist(rows), pa.Table.from_pylist(heads))
    assert [curve.task for curve in made] == ["a", "b"]
    for curve in made:
        wanted = walked([row for row in rows if row["task"] == curve.task])
        assert curve.haystacks == tuple(range(6)) and curve.dropped == 1
        found = {name_of(c): curve.rates[n].tolist() for n, c in enumerate(curve.cells)}
        assert found == {name: list(its.values()) for name, its in wanted.items()}
        assert all(np.isnan(x).all() for x in curve.fidelity.values())
        of = [h for h in heads if h["task"] == curve.task]
        for cell, grid in curve.heads.items():
            names = ("sign()", "sign:center=False") if name_of(cell) == "sign()" else (name_of(cell),)  # fmt: skip
            last = {h["layer"]: h["recall"] for h in of if h["indexer"] in names}
            assert grid.shape == (4, 4)
            for layer, recall in last.items():
                value = grid[layer, layer]
                assert np.isnan(value) if recall is None else value == recall
