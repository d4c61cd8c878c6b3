"""What the benchmark of recipes covers, and the limits that its committed rows hold."""

from __future__ import annotations

import csv
from pathlib import Path

import torch

from topkit.experiments.bench import appends, recipes
from topkit.experiments.bench.scale import Scale
from topkit.experiments.bench.session import Session
from topkit.indexers import INDEXERS
from topkit.indexers.spec import parse


def test_every_recipe_has_a_case_but_those_of_files() -> None:
    session = Session(torch.device("cpu"), Scale(), {})
    names = [what for what, _ in recipes.recipe_cases(session)]
    assert len(names) == len(set(names))
    for name, recipe in INDEXERS.items():
        if name not in recipes.OF_FILES and not recipe.requires:
            spec = recipes.WITH.get(name, f"{name}()")
            assert recipes.what_of(spec, session) in names
            assert type(parse(spec)).__name__ == name


def test_at_most_five_recipes_cost_more_than_three_times_exact_and_say_where_it_goes() -> None:
    with Path("benchmarks/results/cpu.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["bench"] == "recipes"]
    assert len(rows) > 35 and not any(row["error"] for row in rows)
    assert {row["against"] for row in rows} == {"exact()"}
    slow = [row for row in rows if float(row["ratio"]) > recipes.MOST]
    assert len(slow) <= len(recipes.EXCEPTIONS) == 5
    assert all(row["note"] in recipes.EXCEPTIONS.values() for row in slow)
    # Every other row has its limit, and holds it.
    assert all(row["note"] or (row["limit"], row["within"]) == ("<= 3 x", "True") for row in rows)


def test_a_key_is_taken_in_within_a_millisecond_by_every_recipe() -> None:
    session = Session(torch.device("cpu"), Scale(), {})
    cases = [what for what, _ in appends.append_key_cases(session)]
    with Path("benchmarks/results/cpu.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["bench"] == "appends"]
    assert [row["what"] for row in rows] == cases and len(rows) > 40
    assert not any(row["error"] for row in rows)
    assert {(row["limit"], row["within"]) for row in rows} == {("<= 1 ms", "True")}
    notes = {row["note"] for row in rows} - {""}
    assert notes == set(appends.NOTES.values())
