"""Every example runs, and shows what it is there to show."""

from __future__ import annotations

import re
import runpy
from pathlib import Path
from typing import Any

import pytest
import yaml

from topkit.cli.commands import app
from topkit.cli.exits import run

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture
def printed(capsys: pytest.CaptureFixture[str]) -> Any:
    """Run an example as a script: what it printed, line by line."""

    def _printed(name: str) -> list[str]:
        runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
        return capsys.readouterr().out.splitlines()

    return _printed


def numbers(line: str) -> list[float]:
    return [float(x) for x in re.findall(r"\d\.\d+", line)]


def test_fewer_bits_find_fewer_keys(printed: Any) -> None:
    _, *lines = printed("bits")
    eight, four, two, two_rotated, one, one_rotated = (numbers(line)[0] for line in lines)
    assert eight > four > two_rotated > two > one
    assert one_rotated > one


def test_an_own_indexer_stands_beside_others(printed: Any) -> None:
    lines = {line.split()[0]: numbers(line) for line in printed("own_indexer")}
    assert set(lines) == {"sketch", "quantized"}
    assert 0.05 < lines["sketch"][0] < lines["quantized"][0]


@pytest.mark.slow
def test_an_own_task_is_asked(printed: Any) -> None:
    scores = {line.split()[0]: numbers(line) for line in printed("own_task")}
    assert set(scores) == {"dense", "exact()", "sign()"}
    assert scores["dense"][1] < scores["exact()"][1] < scores["sign()"][1]


@pytest.mark.slow
def test_the_shadow_is_the_unchanged_models(printed: Any) -> None:
    answer, led, shadow = printed("shadow")
    assert shadow.endswith(f"said{answer.removeprefix('the answer is')}")
    assert all(0 < numbers(line)[0] < 1 for line in (led, shadow))


def test_the_gate_of_a_kernel_passes() -> None:
    space = runpy.run_path(str(EXAMPLES / "kernel_gate.py"))
    space["test_it_selects_the_largest_scores"](15, "plateau")
    space["test_it_selects_the_same_again"]()


def test_the_study_can_be_planned(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["study", str(EXAMPLES / "study.yaml"), "--out", str(tmp_path / "run"), "--dry-run"]
    assert run(app, words) == 0
    indexers = len(yaml.safe_load((EXAMPLES / "study.yaml").read_text())["indexers"])
    # Two budgets each, and full attention.
    assert f"{2 * indexers + 1} cells" in capsys.readouterr().err


@pytest.mark.slow
def test_the_notebook_runs() -> None:
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(EXAMPLES / "mass_by_layer.ipynb", as_version=4)
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(EXAMPLES)}}).execute()
    outputs = [out for cell in notebook.cells for out in cell.get("outputs", ())]
    assert any("image/png" in out.get("data", {}) for out in outputs)
    (lines,) = (out["text"].splitlines() for out in outputs if out["output_type"] == "stream")
    plain, remedied = (numbers(line.rpartition(")")[2]) for line in lines)
    assert len(plain) == len(remedied) == 5 and sum(remedied) > sum(plain)


def test_every_example_is_listed_and_tried() -> None:
    files = {path.name for path in EXAMPLES.iterdir() if path.is_file()} - {"README.md"}
    listed = set(re.findall(r"^\| `([\w.]+)`", (EXAMPLES / "README.md").read_text(), re.MULTILINE))
    assert listed == files
    tried = Path(__file__).read_text()
    assert all(Path(name).stem in tried for name in files)
