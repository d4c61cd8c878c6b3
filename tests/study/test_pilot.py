"""A pilot: it runs before the study on haystacks of its own, chooses by rule, and says why."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from topkit.errors import InputError
from topkit.experiments.evaluate.condensed import condensed
from topkit.experiments.runs.cells import Cell
from topkit.experiments.runs.plan import run
from topkit.experiments.study.curve import Curve
from topkit.experiments.study.design import Pilot, Study
from topkit.experiments.study.kinds import EXACT
from topkit.experiments.study.pilot import SEED, asked, ladders, placed, seed_of
from topkit.experiments.study.reading import STUDY
from topkit.experiments.study.study import run_study
from topkit.experiments.study.study_file import read_study
from topkit.experiments.tasks import task_name
from topkit.indexers.budget import parse_budgets


def study(tmp_path: Path, **keys: Any) -> Study:
    path = tmp_path / "study.yaml"
    plain = {"tasks": ["niah-multikey"], "lengths": [1024, 2048], "haystacks": 20}
    plain |= {"budgets": [32], "indexers": ["sign", {"exact": [4, 8, 16, 32, 64]}]}
    path.write_text(yaml.safe_dump({**plain, **keys}))
    return read_study(path)


def curve(
    task: str, length: int, dense: float, exact: dict[str, float], haystacks: int = 8
) -> Curve:
    """A curve of full attention and exact Top-k whose means are known."""
    cells = (Cell(), *(Cell(EXACT, parse_budgets(k)[0]) for k in exact))
    rates = np.array([[score] * haystacks for score in (dense, *exact.values())])
    ones = np.ones(haystacks)
    return Curve(
        task, length, "question", "exact_match", cells, tuple(range(haystacks)), ones, rates, rates, {}, {}, 4.0, {}
    )  # fmt: skip


def test_a_pilot_asks_dense_and_exact_on_haystacks_of_its_own(tmp_path: Path):
    made = study(tmp_path, seed=[0, SEED], tasks=["niah-multikey", "books"])
    assert made.pilot is not None
    parts = asked(made, made.pilot)
    assert [(p.lengths, p.haystacks, p.first) for p in parts] == [
        ((1024,), 8, 20),
        ((2048,), 8, 20),
    ]
    assert [str(cell.budget) for cell in parts[0].cells[1:]] == ["4", "16", "64"]
    assert seed_of(made) == SEED + 1  # none of the study's own


def test_ladders_are_of_distractors_at_each_length_or_of_lengths_too(tmp_path: Path):
    made = study(tmp_path, tasks=["niah-multikey", "recite"])
    by_length = ladders(made, Pilot(distractors=(16, 4)))
    shown = [[(getattr(t, "distractors", None), n) for t, n in group] for group in by_length]
    assert shown == [
        [(16, 1024), (4, 1024)],
        [(16, 2048), (4, 2048)],
        [(0, 1024)],
        [(0, 2048)],
    ]
    both = ladders(made, Pilot(distractors=(16, 4), lengths=(2048, 512)))
    shown = [[(getattr(t, "distractors", None), n) for t, n in group] for group in both]
    assert shown[0] == [(16, 2048), (4, 2048), (16, 512), (4, 512)]


# full attention, exact Top-k at three budgets: whether it suits, and why not
CASES = [
    (1.0, (0.0, 0.5, 1.0), ""),
    (0.8, (0.3, 0.3, 0.3), ""),
    (1.0, (0.95, 1.0, 1.0), ""),
    (0.79, (0.1, 0.5, 0.7), "since full attention scores below 0.8"),
    (1.0, (0.96, 1.0, 1.0), "since exact Top-k scores above 0.95 at every k"),
    (1.0, (0.0, 0.1, 0.29), "since exact Top-k scores below 0.3 at every k"),
    (1.0, (0.0, 0.2, 1.0), "since exact Top-k scores between 0.3 and 0.95 at no k"),
]


@pytest.mark.parametrize(("dense", "exact", "fault"), CASES)
def test_what_suits(tmp_path: Path, dense: float, exact: tuple[float, ...], fault: str):
    made = replace(study(tmp_path), lengths=(1024,))
    ((task, _),) = made.settings
    scores = curve(task_name(task), 1024, dense, dict(zip(("4", "16", "64"), exact, strict=True)))
    if not fault:
        choice = placed(made, Pilot(), [scores], "m")
        assert choice.settings == ((task, 1024),)
        assert "is studied: full attention" in choice.lines[0]
        return
    with pytest.raises(InputError) as error:
        placed(made, Pilot(), [scores], "m")
    assert fault in str(error.value) and "--no-pilot" in str(error.value)
    assert f"full attention {dense:.2f}" in str(error.value)


def test_the_first_rung_that_suits_is_taken_and_the_others_say_why(tmp_path: Path):
    made = replace(study(tmp_path, tasks=["niah-multikey", "books"]), lengths=(1024,))
    terms = Pilot(distractors=(60, 16, 4))
    rungs = [task for task, _ in ladders(made, terms)[0]]
    scores = [(0.5, 0.2), (0.9, 0.6), (1.0, 0.9)]
    known = [
        curve(task_name(rung), 1024, dense, {"16": exact})
        for rung, (dense, exact) in zip(rungs, scores, strict=True)
    ]
    choice = placed(made, terms, known, "m")
    assert [(t.name, getattr(t, "distractors", None), n) for t, n in choice.settings] == [
        ("niah-multikey", 16, 1024),
        ("books", None, 1024),
    ]
    words = ["left out, since full attention", "is studied", "comes later on its ladder", "its NLL"]
    assert all(word in line for word, line in zip(words, choice.lines, strict=True))


@pytest.fixture
def small(tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    keys = {
        "tasks": ["niah-multikey:wording=trained,questions=2,distractors=6"],
        "lengths": [640],
        "haystacks": 1,
        "budgets": [2],
        "indexers": [{"exact()": [2, 16]}, "sign()"],
        "pilot": {"haystacks": 1, "distractors": [20, 4], "exact_between": [0.0, 1.0]},
    }
    path.write_text(yaml.safe_dump(keys))
    return path


@pytest.mark.slow
def test_a_pilot_runs_first_and_its_rows_stay_apart(tmp_path: Path, small: Path):
    out = tmp_path / "run"
    plan = run_study.plan(small, out=out)
    # The pilot's two rungs, then the study of the first as if it suited.
    assert [(one["jobs"], one["pilot"], one["seed"]) for one in plan.describe()] == [
        (1, True, SEED),
        (1, True, SEED),
        (1, False, 0),
    ]
    assert any("chooses tasks and lengths first" in note for note in plan.notes)
    events: list[Any] = []
    run(plan, progress=events.append)
    assert sum(bool(event.done) for event in events) == 3
    said = [line for event in events for line in event.lines]
    assert any("is studied: full attention" in line for line in said)
    about = json.loads((out / STUDY).read_text())
    assert "distractors=20 at 640 tokens is studied" in about["pilot"].replace(",questions=2", "")
    rows, apart = (condensed(folder)[0].to_pylist() for folder in (out, out / "pilot"))
    assert {row["haystack"] for row in rows} == {0}
    assert {row["haystack"] for row in apart} == {1}
    seeds = [
        json.loads((f / "run.json").read_text())["identity"]["seed"] for f in (out, out / "pilot")
    ]
    assert seeds == [0, SEED]
    assert "at 640 tokens is studied" in (out / "report.html").read_text()
    again = run_study.plan(small, out=out)
    assert (len(again.jobs), again.done) == (0, 3)
    assert any("is studied" in note for note in again.notes)


def test_a_floor_is_refused_and_the_pilot_stays(tmp_path: Path, small: Path):
    """Nothing of the study itself is written; without a pilot it runs."""
    out = tmp_path / "run"
    floor = {"haystacks": 1, "distractors": [4], "dense_at_least": 1.0, "exact_between": [0, 0]}
    with pytest.raises(
        InputError, match="the pilot finds nothing to study with reference"
    ) as error:
        run_study(small, out=out, pilot=floor, budgets="100%", indexers=["exact"])
    assert "\n" not in str(error.value)
    assert not list(out.glob("accuracy/*")) and not (out / "report.html").exists()
    assert len(list((out / "pilot").glob("accuracy/*.parquet"))) == 1
    with pytest.raises(InputError, match="the pilot finds nothing"):
        run_study.plan(small, out=out, pilot=floor, budgets="100%", indexers=["exact"])
    assert run_study.plan(small, out=out, pilot=False).numbers["jobs"] == 1


def test_a_short_file_is_shared_by_study_and_pilot(tmp_path: Path):
    """Prompts of a file are the same for every seed: the pilot's stand behind the study's."""
    path = tmp_path / "validation.jsonl"
    row = {"input": "The code is 7. What is the code?", "outputs": ["7"], "answer_prefix": ""}
    path.write_text(f"{json.dumps(row)}\n" * 12)
    task = f"ruler:file={path},task=niah_single_2"
    made = study(tmp_path, tasks=[task], haystacks=20)
    ((file, length), *_) = made.settings
    assert [(p.haystacks, p.first) for p in made.parts(made.settings)] == [(4, 0), (4, 0)]
    assert made.pilot is not None
    assert [(p.haystacks, p.first) for p in asked(made, made.pilot)] == [(8, 4), (8, 4)]
    (line,) = made.short_files
    assert "has 12 prompts: 4 for the study, of 20 asked for" in line
    assert replace(made, pilot=None).haystacks_of(file, length) == 20
    with pytest.raises(InputError, match="no more than its pilot takes"):
        study(tmp_path, tasks=[task], pilot={"haystacks": 12})


def test_a_pilot_of_several_settings_is_planned_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "small.yaml"
    path.write_text(
        yaml.safe_dump({
            "tasks": ["niah-single:wording=code", "books:tokens=4", "niah-word"],
            "lengths": [640, 768], "haystacks": {640: 3, 768: 2}, "budgets": [4],
            "indexers": ["exact()", "sign()"], "pilot": {"haystacks": 1, "budgets": [2, 4]},
        })
    )  # fmt: skip
    assert run_study.plan(path, out=tmp_path / "run").lines() == [
        "reference, pilot: 4 jobs, 0 of them done: 1 haystacks of each task and length, 3 cells",
        "reference, seed 0: 9 jobs, 0 of them done: 3 haystacks of each task and length, 3 cells",
        "reference, seed 0: 6 jobs, 0 of them done: 2 haystacks of each task and length, 3 cells",
    ]
