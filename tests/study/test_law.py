"""A registered law: its formula and rows against slow renderings, its verdict where the truth is known."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from topkit.errors import InputError
from topkit.experiments.evaluate.condensed import keep_condensed
from topkit.experiments.runs import run_file
from topkit.experiments.runs.cells import Cell
from topkit.experiments.runs.parts import write_part
from topkit.experiments.runs.runners import crew
from topkit.experiments.study.course import Course
from topkit.experiments.study.kinds import family_of, kind_of, manner_of
from topkit.experiments.study.law import (
    FOLDER,
    answer_chance,
    names,
    read_law,
    reading_heads,
    require_unchanged,
)
from topkit.experiments.study.law_points import Point, Predictions, predictions
from topkit.experiments.study.law_report import blocks, counted, outcome, sentences
from topkit.experiments.study.law_rows import Reading, law_table
from topkit.experiments.study.law_verdict import (
    HELD,
    REFUTED,
    UNDECIDED,
    assessed,
    rival,
    verdict,
)
from topkit.experiments.study.ordering import left_out_errors
from topkit.experiments.study.reading import RUNS, STUDY, study_of
from topkit.experiments.study.study import run_study
from topkit.experiments.study.study_file import read_study
from topkit.experiments.study.study_plan import listed
from topkit.experiments.tasks import task_name
from topkit.indexers.budget import parse_budget
from topkit.indexers.spec import parse
from two_tables import part

LAW = read_law("answer-key")


@pytest.fixture
def own(tmp_path: Path) -> Any:
    """Writes the bundled law with other values; gives its file."""

    def write(**changes: Any) -> Path:
        held = yaml.safe_load((FOLDER / "answer-key.yaml").read_text())
        path = tmp_path / "mine.yaml"
        path.write_text(yaml.safe_dump({**held, **{k.replace("_", " "): v for k, v in changes.items()}}))  # fmt: skip
        return path

    return write


def test_half_of_the_steps_go_right_at_the_constant():
    weights = np.array([0.0, 0.05, 0.27, 0.6, 1.0])
    made = LAW.step(weights)
    assert made[2] == pytest.approx(0.5) and made[0] == 0
    odds = made[1:] / (1 - made[1:])
    assert np.log(odds) == pytest.approx(LAW.slope * np.log(weights[1:] / 0.27))


def test_the_registered_law_is_what_was_published():
    """Its numbers are a promise: whoever changes them registers another law."""
    assert names() == ["answer-key"]
    assert (LAW.half, LAW.slope, LAW.heads, LAW.error, LAW.families) == (0.27, 6, 3, 0.05, 18)
    assert set(LAW.models) == {"reference", "smollm2"} and LAW.dense == 0.5
    for study in ("law", "law-quick", "law-short"):
        made = read_study(study)
        assert made.law == LAW and made.shadow and made.observe == "answer-rows"
        for model in made.model:
            settings = made.of(model).settings
            assert {task.name for task, _ in settings}.isdisjoint(LAW.seen)
    for study in (read_study("law"), read_study("law-short")):
        assert set(study.model) == set(LAW.models)
        for model in study.model:
            own = study.of(model)
            assert all(own.at(length) >= LAW.haystacks for _, length in own.settings)
            assert {task_name(task) for task, _ in own.settings} <= set(LAW.tasks_of(model))
            cells = [cell for cell in own.cells if cell.indexer is not None]
            families = {manner_of(c) if kind_of(c) == "oracle" else family_of(c) for c in cells}
            # Of which smollm2 leaves one out, that was trained for the other model.
            assert len(families) - 1 >= LAW.families


def test_what_a_course_of_two_models_says_of_its_runs_is_read_back(tmp_path: Path):
    """Each model has a folder, and in it the split that its reading heads are found on."""
    course = Course(study=read_study("law"), out=tmp_path, about={}, crew=crew(None, 1, "cpu"))
    (tmp_path / STUDY).write_text(json.dumps({RUNS: listed(course)}))
    said = study_of(tmp_path / STUDY)[RUNS]
    assert [one["heads"] for one in said] == ["smollm2/heads", "reference/heads"]


def test_an_answer_is_right_where_all_its_steps_are():
    assert answer_chance(np.array([0.5, 0.5, 0.8]), 1) == pytest.approx(0.2)
    assert answer_chance(np.array([0.25, 0.25]), 2) == pytest.approx(0.25)
    assert answer_chance(np.array([]), 1) == 1
    assert answer_chance(np.array([1.0, 0.0]), 1) == pytest.approx(0, abs=1e-12)


def test_reading_heads_are_those_of_the_largest_weight():
    weights = {(0, 0): 0.2, (1, 3): 0.9, (1, 2): 0.9, (2, 0): 0.1}
    assert reading_heads(weights, 3) == [(1, 2), (1, 3), (0, 0)]
    with pytest.raises(InputError, match="the law reads 5 heads; of 4"):
        reading_heads(weights, 5)


def write(folder: Path, table: str, rows: list[dict[str, Any]]) -> None:
    (folder / table).mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), folder / table / "part.parquet")


STEP = {"task": "t", "length": 64, "sparse_from": "question", "budget": "4", "steps": "answer"}


def steps(rng: np.random.Generator, haystacks: int = 2) -> list[dict[str, Any]]:
    """Rows of two layers of two heads, of which (1, 0) and (1, 1) read; a step without a key, other levels."""
    rows: list[dict[str, Any]] = []
    for haystack in range(haystacks):
        for question in range(2):
            for position in range(3):
                for shadow in (False, True):
                    for layer, head in ((0, 0), (0, 1), (1, 0), (1, 1)):
                        known = position < 2
                        row = {
                            **STEP,
                            "haystack": haystack,
                            "indexer": "sign()",
                            "question": question,
                        }
                        row |= {"position": position, "layer": layer, "head": head, "level": "head"}
                        row |= {"shadow": shadow, "w": 0.9 * layer + 0.05 if known else None}
                        rows.append({**row, "ws": float(rng.random()) if known else None})
                rows.append({**rows[-1], "level": "group", "w": 9.0, "ws": 9.0})
                rows.append({**rows[-2], "steps": "question", "w": 9.0, "ws": 9.0})
    return rows  # fmt: skip


def slow_law(rows: list[dict[str, Any]], haystack: int, shadow: bool, parts: int) -> float:
    """By loops over the reading heads (1, 0) and (1, 1)."""
    right: list[float] = []
    for question in range(2):
        chance = 1.0
        for position in range(2):
            both = [
                row["ws"]
                for row in rows
                if (row["haystack"], row["question"], row["position"]) == (haystack, question, position)
                and (row["level"], row["steps"], row["shadow"], row["layer"]) == ("head", "answer", shadow, 1)
            ]  # fmt: skip
            assert len(both) == 2
            chance *= 1 / (1 + (0.27 / (sum(both) / 2)) ** 6)
        right.append(chance ** (1 / parts))
    return sum(right) / 2


@pytest.mark.parametrize("parts", [1, 3])
def test_predictions_are_those_of_the_loops(tmp_path: Path, parts: int):
    law, rows = replace(LAW, heads=2), steps(np.random.default_rng(parts))
    run, split = tmp_path / "run", tmp_path / "heads"
    for folder in (run, split):
        write(folder, "fidelity", rows)
    rule = {"rule": "all" if parts > 1 else "any", "references": ["a"] * parts}
    rule |= {"indexer": "sign()", "score": 1.0}
    asked = [{**STEP, **rule, "haystack": h, "question": q} for h in range(2) for q in range(2)]
    write(run, "accuracy", asked)
    table, reading = law_table(run, split, law)
    assert reading == Reading([(1, 0), (1, 1)], [1.0, 1.0])
    assert Reading.of_json(reading.as_json()) == reading
    assert table["missed"].to_pylist() == [0, 0]
    assert table["haystack"].to_pylist() == [0, 1]
    for haystack, row in enumerate(table.to_pylist()):
        assert row["law"] == pytest.approx(slow_law(rows, haystack, False, parts))
        assert row["law_shadow"] == pytest.approx(slow_law(rows, haystack, True, parts))


def test_answers_whose_key_all_reading_heads_missed_are_counted(tmp_path: Path):
    rows = steps(np.random.default_rng(0), haystacks=1)
    for (
        row
    ) in rows:  # of question 0 one reading head finds the key at step 1; of question 1 none does
        late = (row["position"], row["layer"], row["shadow"]) == (1, 1, False)
        if late and (row["question"], row["head"]) in ((0, 0), (1, 0), (1, 1)):
            row["ws"] = 0.0
    for folder in ("run", "heads"):
        write(tmp_path / folder, "fidelity", rows)
    rule = {"rule": "any", "references": ["a"], "indexer": "sign()", "haystack": 0}
    asked = [{**STEP, **rule, "question": q, "score": [1.0, 0.25][q]} for q in range(2)]
    write(tmp_path / "run", "accuracy", asked)
    table, _ = law_table(tmp_path / "run", tmp_path / "heads", replace(LAW, heads=2))
    (row,) = table.to_pylist()
    assert (row["missed"], row["missed_score"]) == (1, 0.25)


def test_what_a_law_was_kept_of_counts_where_its_haystack_was_kept_too(tmp_path: Path):
    """As of a run whose tables were made while it was written to, the law's of more haystacks."""
    part(tmp_path, "a", 1, (0,))
    keep_condensed(tmp_path)
    rows = pq.read_table(next((tmp_path / "accuracy").glob("*.parquet"))).to_pylist()
    scores = [row["score"] for row in rows if row["indexer"] == "sign()"]  # of two questions
    for table in ("accuracy", "fidelity"):
        shutil.rmtree(tmp_path / table)
    place = {
        "task": "t",
        "length": 64,
        "sparse_from": "question",
        "indexer": "sign()",
        "budget": "4",
    }
    half = dict.fromkeys(("law", "ws", "law_shadow", "ws_shadow", "missed_score"), 0.5)
    rows = [{**place, **half, "haystack": haystack, "missed": 1} for haystack in (0, 7)]
    about = {"law": LAW.sha256, "reading": Reading([(0, 1)], [1.0]).as_json()}
    (tmp_path / "curve" / "law").mkdir()
    table = pa.Table.from_pylist(rows).replace_schema_metadata(about)
    described = run_file.read(tmp_path)
    assert described is not None
    write_part(tmp_path / "curve" / "law", "rows", table, run=described["id"])
    found = predictions("m", tmp_path, tmp_path / "heads", LAW)
    assert [point.haystacks for point in found.points] == [1]
    assert found.missed == [(0.5, 1)]
    assert found.others == [(pytest.approx(sum(scores) - 0.5), 1)]


def test_what_answers_score_beside_those_with_a_missed_key_is_said():
    reading = Reading([(0, 1)], [1.0])
    one = Predictions("m", reading, [], [(0.0, 9), (0.25, 4)], [(1.0, 30), (0.5, 10)])
    (told,) = [line for line in sentences(LAW, one) if "missed" in line]
    assert told.startswith("The 13 answers with a step whose key all of them missed score 0.08 [")
    assert "the 40 others 0.88 [" in told


def test_a_task_without_a_known_key_says_so(tmp_path: Path):
    rows = [{**row, "w": None, "ws": None} for row in steps(np.random.default_rng(0))]
    for row in rows:
        row["w"] = row["ws"] = float("nan") if row is rows[0] else None
    table = pa.Table.from_pylist(rows)
    table = table.set_column(table.schema.get_field_index("w"), "w", pa.nulls(len(rows), pa.float64()))  # fmt: skip
    (tmp_path / "fidelity").mkdir()
    pq.write_table(table, tmp_path / "fidelity" / "part.parquet")
    with pytest.raises(InputError, match="has no answer's key: run it with --observe answer-rows"):
        law_table(tmp_path, tmp_path, LAW)


def points(
    error: float, haystacks: int = 128, families: int = 20, task: str = "niah-word"
) -> Predictions:
    """Two cells a family, which score `error` more or less than is predicted."""
    rng, made = np.random.default_rng(0), list[Point]()
    recipes = ["quantized(dtype='int4')", "sign()"]
    recipes += [f"degraded(0.5, miss='{m}', fill='{f}')" for m in ("uniform", "boundary", "heavy", "recent", "page") for f in ("uniform", "next", "recent", "none")]  # fmt: skip
    for n, spec in enumerate(recipes[1 : families + 1]):
        for k in (4, 8):
            p = float(rng.uniform(0.1, 0.9))
            scored = p + error * (1 if (n + k // 4) % 2 else -1)
            forms = {"observed": p, "shadow": p}
            cell = Cell(parse(spec), parse_budget(k))
            metrics = {"ws": p, "recall": 1 - p, "mass": p, "top1": 0.5, "output_error": 1 - p}
            made.append(Point(task, 64, cell, haystacks, scored, 1.0, forms, dict.fromkeys(forms, 0.02), metrics))  # fmt: skip
    return Predictions("reference", Reading([(7, 5)], [0.5, 1.0]), made, [(0.0, 3), (0.5, 2)])


# Of one registered task.
ONE = replace(LAW, models={"reference": ("niah-word",)})


def test_verdicts():
    held = outcome(ONE, points(0.02), "observed")
    assert held is not None and (held.word, held.families) == (HELD, 20)
    assert float(held.law.error.value) == pytest.approx(0.02)
    assert held.law.by_chance == pytest.approx(0.02 * np.sqrt(2 / np.pi))
    low, high = held.law.slope.low, held.law.slope.high
    assert low < 1 < high and held.law.intercept.low < 0 < held.law.intercept.high
    refuted = outcome(ONE, points(0.08), "shadow")
    assert refuted is not None and refuted.word == REFUTED
    few = outcome(ONE, points(0.08, haystacks=127), "observed")
    assert few is not None and few.word == UNDECIDED and "127 of 128 planned" in few.why
    narrow = outcome(ONE, points(0.0, families=17), "observed")
    assert narrow is not None and narrow.word == UNDECIDED and "17 families" in narrow.why
    # At the registered error itself nothing is refuted.
    exact = replace(ONE, error=float(held.law.error.value))
    assert verdict(exact, held.law, 20, 128)[0] == HELD


def test_a_registered_task_that_was_not_run_leaves_it_undecided():
    assert len(LAW.models["reference"]) > 1
    found = outcome(LAW, points(0.08), "observed")
    assert found is not None and found.word == UNDECIDED
    assert found.why.startswith("registered tasks were not run: niah-multivalue:wording=trained")


def test_what_the_law_was_chosen_on_is_not_counted():
    seen = points(0.0, task="kv-recall")
    assert not counted(replace(LAW, models={"reference": ("kv-recall",)}), seen)
    assert outcome(LAW, seen, "observed") is None
    said = " ".join(sentences(LAW, seen))
    assert "No task that the law is registered to predict" in said and "kv-recall" in said
    other = replace(points(0.0, task="niah-word"), model="elsewhere/third/model")
    assert len(counted(LAW, other)) == len(other.points)  # the one that is kept for the end
    assert not counted(LAW, replace(other, model="a fourth/model"))


def test_a_task_that_full_attention_does_not_do_is_not_counted():
    """Its scores lie near nought, and so does whatever is predicted."""
    found = points(0.0)
    poor = replace(found, points=[replace(p, dense=0.4, scored=0.0) for p in found.points])
    assert outcome(LAW, poor, "observed") is None
    said = " ".join(sentences(LAW, poor))
    assert "full attention scores less than 0.5 on them: niah-word (0.40)" in said
    assert "registered for them" not in said


def test_the_line_of_a_prediction():
    x = np.linspace(0.1, 0.9, 12)
    found = assessed(x, 0.5 * x + 0.2, [str(n // 2) for n in range(12)])
    for interval, value in ((found.slope, 0.5), (found.intercept, 0.2)):
        assert list(interval) == pytest.approx([value] * 3)
    # A family of many cells weighs as much as one of one: by hand, from two families' means.
    one = assessed(np.array([0.0, 0.0, 0.0, 1.0]), np.array([0.1, 0.1, 0.1, 0.5]), ["a"] * 3 + ["b"])  # fmt: skip
    assert float(one.error.value) == pytest.approx((0.1 + 0.5) / 2)
    assert float(one.slope.value) == pytest.approx(0.4)
    assert np.isnan(assessed(np.ones(4), x[:4], list("abcd")).slope.value)


def test_rivals_are_fitted_to_other_families_alone():
    rng = np.random.default_rng(1)
    x, y, families = rng.random(9), rng.random(9), list("aabbccdde")
    errors = np.abs(rival(x, y, families) - y)
    of = np.array([0, 0, 1, 1, 2, 2, 3, 3, 4])
    means = [errors[of == n].mean() for n in range(5)]
    assert left_out_errors(x, y, of) == pytest.approx(means)
    spoilt = y.copy()
    spoilt[:2] = 9
    assert rival(x, spoilt, families)[:2] == pytest.approx(rival(x, y, families)[:2])


def test_the_section_shows_the_law_beside_its_rivals():
    text = str(list(blocks(ONE, [points(0.02)])))
    assert "one of them" in text and "The 5 answers with a step" in text and "score 0.20" in text
    for words in ("the law, observed", "the law, shadow", "`recall`", "`output_error`", "Observed: held"):  # fmt: skip
        assert words in text


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"half_right_at": 2}, "half right at"),
        ({"half_right_at": 0}, "more than 0"),
        ({"formula": "probit"}, "formula"),
        ({"reading_heads": 0}, "reading heads"),
        ({"models": {"reference": {"tasks": ["niah-wrd"], "why": ""}}}, "niah-word"),
    ],
)
def test_a_file_that_is_no_law_is_refused(own: Any, changes: dict[str, Any], words: str):
    with pytest.raises(InputError, match=words):
        read_law(own(**changes))


def test_an_unknown_law_names_the_nearest():
    with pytest.raises(InputError, match="answer-key"):
        read_law("answer-kye")


def test_a_task_whose_answers_stand_nowhere_is_refused_before_it_runs(tmp_path: Path):
    words = r"a law weighs the keys of answers, .*those of books:tokens=16 stand; ask a task"
    with pytest.raises(InputError, match=words):
        run_study.plan("law-quick", out=tmp_path / "run", tasks=["niah-word", "books:tokens=16"], lengths="512", haystacks=1)  # fmt: skip
    assert not (tmp_path / "run").exists()


def test_a_law_that_was_changed_after_its_run_is_refused(own: Any, tmp_path: Path):
    path = own()
    first = read_law(path)
    require_unchanged(first, first.sha256, "run")
    out = tmp_path / "run"
    out.mkdir()
    said = {"model": "reference", "law": {"name": str(path), "sha256": first.sha256}}
    (out / "study.json").write_text(json.dumps(said))
    changed = own(slope=5)
    with pytest.raises(InputError, match=r"was changed after .*run was run of it"):
        run_study.plan("law-quick", out=out, law=changed, haystacks=1)
    with pytest.raises(InputError, match="restore the file"):
        require_unchanged(read_law(changed), first.sha256, out)
