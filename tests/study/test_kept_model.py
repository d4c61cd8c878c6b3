"""The model that a law keeps for the end: made as registered, run after the others, and once."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from tiny import READS_REFERENCE, tiny
from topkit.errors import InputError
from topkit.experiments.model.load import REFERENCE
from topkit.experiments.runs import run_file
from topkit.experiments.study.kept_model import note, note_of, require_first, require_its_turn
from topkit.experiments.study.law import read_law
from topkit.experiments.study.study import run_study
from topkit.experiments.study.study_file import read_study
from topkit.experiments.train.sizes import recipe_of

LAW = read_law("answer-key")
CALLED = "third/model"


def begun(out: Path, weights: str = "ab") -> Path:
    run_file.describe(out, {"weights": weights, "device": "cpu"})
    return out


def others(place: Path, *models: str, sha256: str = LAW.sha256) -> None:
    """Runs of a law on models, in one folder of theirs."""
    runs = [{"model": model, "seed": 0, "folder": model} for model in models]
    said = {"law": {"name": "answer-key", "sha256": sha256}, "runs": runs}
    for model in models:
        (place / "law" / model).mkdir(parents=True)
        begun(place / "law" / model)
    (place / "law" / "study.json").write_text(json.dumps(said))


def made(place: Path, **changes: Any) -> str:
    """A folder with what the kept model is known by."""
    model = place / CALLED
    model.mkdir(parents=True)
    (model / "config.json").write_text("{}")
    (model.parent / "recipe.json").write_text(json.dumps({**LAW.kept.recipe, "width": 256, **changes}))  # fmt: skip
    return str(model)


def test_the_command_makes_what_is_registered():
    words = shlex.split(LAW.kept.made_by)
    assert words[:3] == ["topkit", "train", "reference"]
    said = dict(zip(words[3::2], words[4::2], strict=True))
    recipe = recipe_of(said["--size"], int(said["--seed"]), second=True)
    assert {name: getattr(recipe, name) for name in LAW.kept.recipe} == LAW.kept.recipe
    assert recipe.seed != recipe_of("14m", 0, second=True).seed  # the bundled model's
    assert f"{said['--out']}/model" == LAW.kept.model == CALLED


def test_its_study_asks_what_is_registered():
    study = read_study("law-third")
    assert study.model == (CALLED,) and study.law == LAW and study.shadow
    full = read_study("law")
    assert [one for one, _ in study.indexers] == [one for one, _ in full.indexers]
    kinds = {task.name for task, _ in study.settings}
    assert len(kinds) == len(LAW.kept.tasks) and kinds.isdisjoint(LAW.seen)
    assert all(study.at(length) >= LAW.haystacks for _, length in study.settings)


def test_it_comes_after_the_others(tmp_path: Path):
    model, out = made(tmp_path), tmp_path / "law-third"
    with pytest.raises(
        InputError, match=r"no run of answer-key on reference and smollm2 stands beside .*study law"
    ):
        require_its_turn(LAW, model, out)
    others(tmp_path, "reference")
    with pytest.raises(InputError, match="on smollm2 stands beside"):
        require_its_turn(LAW, model, out)


def test_runs_of_another_law_are_none_of_this(tmp_path: Path):
    others(tmp_path, "reference", "smollm2", sha256="0" * 64)
    with pytest.raises(InputError, match="on reference and smollm2"):
        require_its_turn(LAW, made(tmp_path), tmp_path / "law-third")


def test_another_recipe_is_refused(tmp_path: Path):
    others(tmp_path, "reference", "smollm2")
    with pytest.raises(
        InputError,
        match=r"seed 1 where 7 is registered; it is made by `topkit train reference --size 4m",
    ):
        require_its_turn(LAW, made(tmp_path, seed=1), tmp_path / "law-third")
    with pytest.raises(
        InputError, match=r"no model at nowhere/third/model.*topkit train reference"
    ):
        require_its_turn(LAW, "nowhere/third/model", tmp_path / "law-third")


def test_it_is_run_once(tmp_path: Path):
    others(tmp_path, "reference", "smollm2")
    model, out = made(tmp_path), tmp_path / "law-third"
    require_its_turn(LAW, model, out)
    out.mkdir()
    begun(out)
    note(LAW, out)
    note(LAW, out)  # a run that goes on
    require_its_turn(LAW, model, out)
    with pytest.raises(InputError, match="leave --force out"):
        require_its_turn(LAW, model, out, force=True)
    again = tmp_path / "again"
    with pytest.raises(
        InputError, match=r"was run on .*, in law-third \(weights ab\): it is run once"
    ):
        require_its_turn(LAW, model, again)
    again.mkdir()
    with pytest.raises(InputError, match="is another run"):
        note(LAW, begun(again, "cd"))
    assert json.loads(note_of(LAW, out).read_text())["folder"] == "law-third"
    # Where someone else repeats it, in a place of their own, there is no note yet.
    require_first(LAW, tmp_path / "elsewhere" / "law-third")


@pytest.mark.slow
def test_a_run_of_it_is_noted_before_its_first_haystack(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """With a law whose kept model is a tiny one, at one haystack."""
    held = yaml.safe_load(LAW.path.read_text())
    held["kept for the end"] |= {"recipe": {"seed": 7}, "tasks": ["niah-word"]}
    held["split haystacks"], law = 1, tmp_path / "mine.yaml"
    law.write_text(yaml.safe_dump(held))
    place, model = tmp_path / "results", Path(made(tmp_path))
    tiny("llama", **{**READS_REFERENCE, "max_position_embeddings": 2048}).save_pretrained(model)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (model / name).write_bytes((REFERENCE / name).read_bytes())
    others(place, "reference", "smollm2", sha256=read_law(law).sha256)
    asked: dict[str, Any] = {"law": law, "model": str(model), "lengths": 256, "haystacks": 1}
    asked |= {"indexers": ["exact", "sign"], "budgets": 8, "tasks": "niah-word", "jobs": 1}
    page = run_study("law-third", out=place / "law-third", **asked)
    assert "does the law" in page.read_text().lower()
    said = json.loads((place / "mine-kept.json").read_text())
    assert said["run"] == json.loads((place / "law-third" / "run.json").read_text())["id"]
    with pytest.raises(InputError, match="it is run once"):
        run_study.plan("law-third", out=place / "again", **asked)
