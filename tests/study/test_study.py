"""Studies: what those of topkit hold, and some run to their reports on small models."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from tiny import folder, like_reference
from topkit.errors import InputError
from topkit.experiments.evaluate.condensed import condensed
from topkit.experiments.runs.cells import Cell
from topkit.experiments.runs.plan import run
from topkit.experiments.study.course import folders
from topkit.experiments.study.curves import load
from topkit.experiments.study.design import Pilot
from topkit.experiments.study.kinds import EXACT, family_of, kind_of
from topkit.experiments.study.preset_files import FOLDER, abouts, names
from topkit.experiments.study.reading import STUDY
from topkit.experiments.study.report import write_report
from topkit.experiments.study.study import NAME, run_study
from topkit.experiments.study.study_file import read_study
from topkit.indexers.spec import parse

OWN = ("quick", "full", "tasks")  # for the bundled model
# Of one question each, which asks for cells of its own (tests/study/test_exact_topk.py, test_law.py, test_heads.py).
ASKING = {
    f"{name}{end}" for name in ("exact-topk", "precision", "law", "heads") for end in ("", "-quick")
} | {"law-short", "law-third"}
SMALL: dict[str, Any] = {
    "tasks": ["niah-multikey:wording=trained,questions=2,distractors=6"],
    "lengths": [640],
    "haystacks": 2,
    "budgets": [16],
    "indexers": ["exact()", "sign()", "lightning(dtype='fp8')", "random()"],
    "pilot": False,
}


@pytest.fixture
def small(tmp_path: Path) -> Any:
    """Writes a study of two short haystacks and few cells, with other keys; gives its file."""

    def write(name: str = "small", **keys: Any) -> Path:
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump({**SMALL, **keys}))
        return path

    return write


def test_quick_is_small_and_part_of_full():
    quick, full = read_study("quick"), read_study("full")
    assert len(quick.cells) <= 20
    assert set(quick.cells) <= set(full.cells)
    assert (quick.settings, quick.model) == (full.settings, full.model)
    ((task, length),) = quick.settings
    assert quick.at(length) * task.questions >= 96


@pytest.mark.parametrize("name", ["full", "tasks"])
def test_large_studies_ask_each_task_500_times(name: str):
    study = read_study(name)
    assert all(study.at(length) * task.questions >= 500 for task, length in study.settings)


@pytest.mark.parametrize(
    "name", [name for name in names() if name not in ASKING and not read_study(name).kind]
)
def test_studies_have_what_a_curve_needs(name: str):
    cells = read_study(name).cells
    kinds = [kind_of(cell) for cell in cells]
    assert Cell() in cells
    assert sum(cell.indexer == EXACT for cell in cells) >= (
        1 if name.startswith("leaderboard") else 4
    )
    assert kinds.count("real") >= 10
    assert "control" in kinds
    families = {cell.indexer.family for cell in cells if cell.indexer}
    assert {"ann", "quantized", "pages", "window", "adaptive", "sampling"} <= families
    if name in OWN:
        assert "trained" in families and kinds.count("oracle") >= (6 if name == "quick" else 13)


def test_the_cells_of_0_1_are_what_they_were():
    """One of each kind, spelled as in 0.1."""
    known = [
        *(("full", "degraded(0.9,persist='stream',per='layer')", 16), ("full", "exact", 64)),
        *(("full", "faiss_hnsw(M=16)", 16), ("tasks", "exact", 32), ("quick", "exact", 2)),
        *(("quick", "refine(sign(),factor=4)", 16), ("full", "keep(sign(),sink=2,window=4)", 16)),
    ]
    for name, spec, k in known:
        cells = {(cell.name, str(cell.budget)) for cell in read_study(name).cells}
        assert (repr(parse(spec)), str(k)) in cells
    assert [len(read_study(name).cells) for name in OWN] == [18, 42, 29]
    assert [length for _, length in read_study("tasks").settings] == [4096, 8192, 4096, 4096]


def test_every_study_says_what_it_is():
    assert set(abouts()) == {path.stem for path in FOLDER.glob("*")}
    assert {*OWN, "smollm2-quick", "smollm2"} <= set(abouts())


@pytest.mark.slow
def test_a_study_runs_to_its_report_and_resumes(tmp_path: Path, small: Any):
    out = tmp_path / "run"
    report = run_study(small(), out=out)
    assert report == out / "report.html"
    page = report.read_text()
    assert "does not show" in page
    assert not re.findall(r"(?:src|href)=.?https?:", page)
    for kind in ("png", "svg"):
        assert len(list((out / "figures").glob(f"*.{kind}"))) == 5
    known = json.loads((out / STUDY).read_text())
    assert (known["study"], known["model"]) == (str(tmp_path / "small.yaml"), "reference")
    before = {p: p.stat().st_mtime_ns for p in out.glob("accuracy/*.parquet")}
    assert len(before) == 2
    run_study(small(), out=out)
    assert before == {p: p.stat().st_mtime_ns for p in out.glob("accuracy/*.parquet")}


@pytest.mark.slow
def test_the_words_of_0_1(tmp_path: Path):
    plan: Any = run_study.plan(NAME, "quick", tmp_path / "run", "reference", seed=3, haystacks=2)
    assert [part["jobs"] for part in plan.describe()] == [2]
    assert plan.course.about["preset"] == "quick"
    assert (
        plan.describe()
        == run_study.plan("quick", out=tmp_path / "run", seed=3, haystacks=2).describe()
    )
    old: dict[str, Any] = {"dry_run": True}
    with pytest.warns(FutureWarning, match=r"`.plan\(...\)` says what would be done"):
        assert run_study(NAME, "quick", tmp_path / "run", haystacks=2, **old) is None
    assert not (tmp_path / "run").exists()


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    """A random model of the reference model's widths and tokenizer, in a folder."""
    return folder(tmp_path / "llama", like_reference())


@pytest.mark.slow
def test_cells_that_a_model_cannot_serve_are_left_out(tmp_path: Path, small: Any, llama: Path):
    """The bundled weights of lightning are of the reference model, whatever another's widths are."""
    plan = run_study.plan(small(), out=tmp_path / "run", model=llama)
    outline, *lines = plan.notes
    assert outline.startswith("LlamaForCausalLM: 8 layers")
    assert len(lines) == 1
    report = run(plan)
    assert lines[0].startswith("lightning(weights=reference, dtype=fp8) is left out: ")
    assert "another model than this LlamaForCausalLM" in lines[0]
    (curve,) = load(tmp_path / "run")
    assert not any("lightning" in cell.name for cell in curve.cells)
    assert any("sign" in cell.name for cell in curve.cells)
    assert "topkit train lightning" in report.read_text()


@pytest.mark.slow
def test_tasks_and_indexers_with_lengths_and_budgets_of_their_own(tmp_path: Path, small: Any):
    """Each length is planned and described apart; a study cut short resumes."""
    task = SMALL["tasks"][0]
    two = small(
        tasks=[task, {task: "700"}],
        haystacks={640: 2, 700: 1},
        indexers=["sign", {"exact": [4, 8]}],
    )
    plan = run_study.plan(two, out=tmp_path / "run")
    assert [(one["jobs"], one["haystacks"]) for one in plan.describe()] == [(2, 2), (1, 1)]
    with pytest.raises(ZeroDivisionError):
        run(plan, progress=lambda event: 1 / (2 - event.done))
    assert json.loads((tmp_path / "run" / STUDY).read_text())["study"] == str(two)
    assert run_study.plan(two, out=tmp_path / "run").done == 2
    run(plan)
    assert [curve.length for curve in load(tmp_path / "run")] == [640, 700]
    (first, _) = load(tmp_path / "run")
    assert {(c.name, str(c.budget)) for c in first.cells if c.indexer} == {
        ("sign()", "16"),
        ("exact()", "4"),
        ("exact()", "8"),
    }


def test_flags_stand_over_a_file(small: Any):
    task = SMALL["tasks"][0]
    path = small(tasks=[{task: "700"}], indexers=[{"exact": [4, 8]}, "sign"], seed=[1, 2])
    made = read_study(path, lengths="1k,2k", budgets="16,1%", seed=7, haystacks=5, model="m")
    assert [length for _, length in made.settings] == [1024, 2048]
    assert len(made.cells) == 5
    assert (made.seed, made.at(1024), made.model) == ((7,), 5, ("m",))
    assert read_study(path).seed == (1, 2)
    pilot = read_study(small(pilot={"distractors": [4, 1]}), pilot={"haystacks": 3}).pilot
    assert pilot is not None
    assert (pilot.haystacks, pilot.distractors) == (3, (4, 1))
    assert read_study(small(pilot={"distractors": [4]}), pilot=True).pilot is not None
    assert read_study(small(pilot={"distractors": [4]}), pilot=False).pilot is None


def test_a_file_begins_from_another(tmp_path: Path, small: Any):
    small("first", haystacks=7)
    (tmp_path / "second.yaml").write_text("like: first.yaml\nhaystacks: 3\n")
    made = read_study(tmp_path / "second.yaml")
    assert (made.at(640), made.name) == (3, "second")
    assert made.cells == read_study(tmp_path / "first.yaml").cells
    (tmp_path / "more.yaml").write_text(
        "like: first.yaml\nindexers: [like, streaming_llm(), like]\n"
    )
    more, first = (read_study(tmp_path / f"{name}.yaml").indexers for name in ("more", "first"))
    assert (
        more == (*first, *(one for one in more if one not in first)) and len(more) == len(first) + 1
    )
    (tmp_path / "third.yaml").write_text("like: third.yaml\n")
    with pytest.raises(InputError, match="begin from one another"):
        read_study(tmp_path / "third.yaml")


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "unknown": ({"indexer": ["sign"]}, "no key 'indexer'; did you mean 'indexers'?"),
    "unknown in pilot": ({"pilot": {"haystack": 3}}, "pilot: there is no key 'haystack'; did you"),
    "type": ({"haystacks": "many"}, "haystacks: expected a whole number of at least 1; got 'many'"),
    "float": ({"haystacks": 2.5}, "haystacks: expected a whole number"),
    "none": ({"indexers": []}, "indexers: expected one or more; got none"),
    "task": ({"tasks": ["niah-singl"]}, "tasks: unknown task 'niah-singl'; did you mean"),
    "spec": ({"indexers": ["singn"]}, "indexers: unknown indexer 'singn'; did you mean 'sign'"),
    "parameter": ({"indexers": ["quest:pagesize=4"]}, "page_size"),
    "length": ({"lengths": ["4q"]}, "lengths: a length must be a number of tokens"),
    "budget": ({"budgets": ["0"]}, "budgets: k must be"),
    "no budget": ({"budgets": None}, "budgets has no value"),
    "seed": ({"seed": [-1]}, "seed: expected a whole number of at least 0; got -1"),
    "pilot": ({"pilot": 3}, "pilot: expected true, false or a mapping; got 3"),
    "between": ({"pilot": {"exact_between": [0.9, 0.1]}}, "the lower first"),
    "observe": ({"observe": "meen"}, "observe: unknown value 'meen'; did you mean 'mean'?"),
    "no number": ({"haystacks": {512: 3}}, "haystacks says no number for a length of 640"),
    "two names": ({"indexers": [{"sign": 3, "exact": 4}]}, "one name with its own values"),
    "model": ({"model": ""}, "model: expected text"),
    "own key": ({"model": [{"reference": {"budgts": 3}}]}, "no 'budgts' of its own; did you mean"),
    "own": ({"model": [{"reference": 3}]}, "model: expected one name with keys of its own"),
    "own value": ({"model": [{"reference": {"budgets": ["0"]}}]}, "budgets: k must be"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_no_study_is_refused_in_one_line(tmp_path: Path, small: Any, name: str):
    keys, words = WRONG[name]
    with pytest.raises(InputError) as error:
        run_study(small(**keys), out=tmp_path / "run")
    assert words in str(error.value)
    assert "\n" not in str(error.value) and not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("- 1", "must be a mapping"),
        ("a: [", "as YAML"),
        ("seed: 1\nseed: 2", "stands twice"),
        ("lengths: [4k]", "tasks is missing"),
        ("like: 3", "expected a study's name or file"),
        ("like: nowhere.yaml", "like: there is no study 'nowhere.yaml'"),
    ],
)
def test_a_file_that_is_no_study(tmp_path: Path, text: str, words: str):
    path = tmp_path / "wrong.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=words):
        run_study(path, out=tmp_path / "run")


def test_a_later_length_that_is_refused_deletes_nothing_by_force(tmp_path: Path, small: Any):
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(InputError, match="longer length"):
        run_study(small(lengths=[640, 20]), out=tmp_path, force=True)
    assert (tmp_path / "run.json").read_text() == "{}"


def test_the_nearest_name_is_suggested(tmp_path: Path):
    for wrong, words in (("quik", "'quick'"), ("fidelity-vs-acuracy", "unknown study")):
        with pytest.raises(InputError, match=words):
            run_study(wrong, out=tmp_path)
    with pytest.raises(InputError, match="quick"):
        run_study(NAME, "quik", tmp_path)
    with pytest.raises(InputError, match="a preset is one of"):
        run_study("quick", "quick", tmp_path)
    with pytest.raises(InputError, match="folder for the study"):
        run_study("quick")


@pytest.mark.slow
def test_several_models_and_seeds_are_runs_of_their_own_and_one_report(
    tmp_path: Path, small: Any, llama: Path
):
    out = tmp_path / "run"
    events: list[Any] = []
    path = small(model=["reference", str(llama)], seed=[0, 5], haystacks=1)
    plan = run_study.plan(path, out=out)
    assert len(plan.describe()) == 4 and plan.numbers["jobs"] == 4
    report = run(plan, progress=events.append)
    assert report == out / "report.html"
    runs = [f"{model}/seed-{seed}" for model in ("reference", "llama") for seed in (0, 5)]
    assert [one["folder"] for one in json.loads((out / STUDY).read_text())["runs"]] == runs
    assert all(condensed(out / name)[0].num_rows for name in runs)
    page = report.read_text()
    assert "reference: niah-multikey" in page and "llama: niah-multikey" in page
    assert sum(event.done for event in events) == 4
    assert run_study.plan(path, out=out).done == 4
    assert write_report(out) == report
    with pytest.raises(InputError, match="holds a study of several runs"):
        run_study.plan(small("one"), out=out)
    (out / STUDY).write_text(json.dumps({"runs": [{"model": "m", "seed": 0, "folder": "../x"}]}))
    with pytest.raises(InputError, match="a folder below the study's own"):
        write_report(out)


def test_folders_of_models_tell_them_apart():
    assert folders(["reference", "smollm2"]) == ["reference", "smollm2"]
    assert folders(["a/Model", "b/Model"]) == ["a-model", "b-model"]
    assert folders(["Qwen/Qwen3-0.6B", "./m.gguf"]) == ["qwen3-0.6b", "m.gguf"]
    assert len(set(folders(["a", "A", "../.."]))) == 3


OWN_KEYS = {"reference": {"budgets": [8], "haystacks": 1, "pilot": {"haystacks": 3}}}


def test_a_model_may_have_keys_of_its_own(small: Any):
    path = small(model=["smollm2", OWN_KEYS], pilot={"budgets": [4]})
    study = read_study(path)
    own, other = study.of("reference"), study.of("smollm2")
    assert study.model == ("smollm2", "reference") and other is study
    assert {str(cell.budget) for cell in own.cells if cell.indexer} == {"8"}
    assert {str(cell.budget) for cell in other.cells if cell.indexer} == {"16"}
    assert (own.at(640), other.at(640)) == (1, SMALL["haystacks"])
    assert own.pilot == replace(other.pilot or Pilot(), haystacks=3)
    assert own.settings == other.settings


def test_a_models_own_keys_stand_below_flags_and_stay_with_its_name(small: Any):
    path = small(model=["smollm2", OWN_KEYS])
    study = read_study(path, budgets="4", model=["reference"])
    own = study.of("reference")
    assert study.model == ("reference",) and own.at(640) == 1
    assert {str(cell.budget) for cell in own.cells if cell.indexer} == {"4"}
    assert read_study(path, model=["elsewhere"]).own == {}


def test_the_study_of_both_models_has_the_same_indexers():
    study = read_study("carry-over")
    one, other = map(study.of, study.model)
    assert one.indexers == other.indexers
    graphs = len(one.indexers) - 2
    assert one.indexers[:graphs] == read_study("smollm2").indexers
    assert {cell.indexer for cell in one.cells} == {cell.indexer for cell in other.cells}
    assert one.settings == read_study("smollm2").settings
    families = {family_of(cell) for cell in one.cells if kind_of(cell) in ("real", "control")}
    assert len(families) >= 8 and len(one.cells) >= 24
