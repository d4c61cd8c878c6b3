"""Studies: what their presets hold, and one run to its report on the bundled model."""

import json
from dataclasses import replace

import pytest

from tiny import folder, like_reference
from topkit.errors import InputError
from topkit.experiments.runs.cells import Cell
from topkit.experiments.runs.plan import run
from topkit.experiments.study import presets
from topkit.experiments.study.curves import load
from topkit.experiments.study.kinds import EXACT, kind_of
from topkit.experiments.study.report import STUDY
from topkit.experiments.study.study import run_study
from topkit.experiments.tasks import make_task


def test_quick_is_small_and_part_of_full():
    (quick,), first = presets.quick().parts, presets.full().parts[0]
    assert len(quick.cells) <= 30
    assert set(quick.cells) <= set(first.cells)
    assert (quick.tasks, quick.lengths) == (first.tasks, first.lengths)
    assert quick.haystacks * quick.tasks[0].questions >= 96


@pytest.mark.parametrize("preset", ["full", "tasks"])
def test_large_presets_ask_each_task_500_times(preset):
    for part in presets.PRESETS[preset]().parts:
        assert all(part.haystacks * task.questions >= 500 for task in part.tasks)


@pytest.mark.parametrize("preset", presets.PRESETS)
def test_parts_have_what_a_curve_needs(preset):
    for part in presets.PRESETS[preset]().parts:
        kinds = [kind_of(cell) for cell in part.cells]
        assert Cell() in part.cells
        assert sum(cell.indexer == EXACT for cell in part.cells) >= 4
        assert kinds.count("real") >= 10
        assert kinds.count("oracle") >= 9
        assert "control" in kinds
        assert any(cell.indexer and cell.indexer.family == "trained" for cell in part.cells)
        assert any(cell.indexer and cell.indexer.family == "ann" for cell in part.cells)


@pytest.fixture
def small(monkeypatch):
    """The quick preset with two short haystacks and few cells."""
    whole = presets.quick()
    cells = tuple(c for c in whole.parts[0].cells if "degraded" not in c.name)[:8]
    task = make_task("niah-multikey", wording="trained", questions=2, distractors=6)
    part = presets.Part((task,), (640,), 2, cells)
    monkeypatch.setitem(presets.PRESETS, "small", lambda: replace(whole, parts=(part,)))


def test_a_study_runs_to_its_report_and_resumes(tmp_path, small):
    report = run_study(presets.NAME, "small", tmp_path)
    assert report == tmp_path / "report.html"
    page = report.read_text()
    assert "does not show" in page
    assert "http" not in page.replace("http://www.w3.org", "")
    for kind in ("png", "svg"):
        assert len(list((tmp_path / "figures").glob(f"*.{kind}"))) == 4
    held = json.loads((tmp_path / STUDY).read_text())
    assert (held["study"], held["preset"], held["model"]) == (presets.NAME, "small", "reference")
    before = {p: p.stat().st_mtime_ns for p in tmp_path.glob("accuracy/*.parquet")}
    assert len(before) == 2
    run_study(presets.NAME, "small", tmp_path)
    assert before == {p: p.stat().st_mtime_ns for p in tmp_path.glob("accuracy/*.parquet")}


@pytest.fixture
def llama(tmp_path):
    """A random model of the reference model's widths and tokenizer, in a folder."""
    return folder(tmp_path / "llama", like_reference())


def test_cells_that_a_model_cannot_serve_are_left_out(tmp_path, small, llama):
    """The bundled weights of lightning are of the reference model, whatever another's widths are."""
    plan = run_study.plan(presets.NAME, "small", tmp_path / "run", llama)
    lines = plan.notes
    assert len(lines) == 1
    report = run(plan)
    assert lines[0].startswith("lightning(weights=reference, dtype=fp8) is left out: ")
    assert "another model than this LlamaForCausalLM" in lines[0]
    (curve,) = load(tmp_path / "run")
    assert not any("lightning" in cell.name for cell in curve.cells)
    assert any("quest" in cell.name or "faiss" in cell.name for cell in curve.cells)
    assert "topkit train lightning" in report.read_text()


def test_a_plan_writes_nothing(tmp_path, small):
    plan = run_study.plan(presets.NAME, "small", tmp_path / "run")
    assert (len(plan.jobs), plan.done, len(plan.describe())) == (2, 0, 1)
    old: dict = {"dry_run": True}
    with pytest.warns(FutureWarning, match=r"`.plan\(...\)` says what would be done"):
        assert run_study(presets.NAME, "small", tmp_path / "run", **old) is None
    assert not (tmp_path / "run").exists()


def test_a_study_of_two_parts_is_one_run(tmp_path, small, monkeypatch):
    """Each part is planned and described apart; jobs that both hold are done once."""
    preset = presets.PRESETS["small"]()
    (part,) = preset.parts
    more = replace(part, lengths=(640, 700), haystacks=1)
    monkeypatch.setitem(presets.PRESETS, "two", lambda: replace(preset, parts=(part, more)))
    plan = run_study.plan(presets.NAME, "two", tmp_path / "run")
    assert [(one["jobs"], one["done"]) for one in plan.describe()] == [(2, 0), (2, 1)]
    with pytest.raises(ZeroDivisionError):
        run(plan, progress=lambda event: 1 / (2 - event.done))
    assert json.loads((tmp_path / "run" / STUDY).read_text())["preset"] == "two"
    assert run_study.plan(presets.NAME, "two", tmp_path / "run").done == 3
    run(plan)
    asked = json.loads((tmp_path / "run" / "run.json").read_text())["asked"]
    assert [(one["lengths"], one["samples"]) for one in asked] == [([640], 2), ([640, 700], 1)]
    assert [curve.length for curve in load(tmp_path / "run")] == [640, 700]


def test_a_later_part_that_is_refused_deletes_nothing_by_force(tmp_path, small, monkeypatch):
    preset = presets.PRESETS["small"]()
    part = replace(preset.parts[0], lengths=(20,))
    monkeypatch.setitem(
        presets.PRESETS, "two", lambda: replace(preset, parts=(*preset.parts, part))
    )
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(InputError, match="longer length"):
        run_study(presets.NAME, "two", tmp_path, force=True)
    assert (tmp_path / "run.json").read_text() == "{}"


def test_the_nearest_name_is_suggested(tmp_path):
    with pytest.raises(InputError, match="fidelity-vs-accuracy"):
        run_study("fidelity-vs-acuracy", "quick", tmp_path)
    with pytest.raises(InputError, match="quick"):
        run_study(presets.NAME, "quik", tmp_path)
