"""Indexers and tasks of other packages: a small one is installed, and used in every command."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

import topkit
from topkit.cli import listing
from topkit.cli.exits import UNDECIDED
from topkit.errors import InputError
from topkit.experiments.runs.parts import read_table
from topkit.experiments.study.report import write_report
from topkit.experiments.tasks import make_task, task_name
from topkit.indexers import INDEXERS, Scored, keep
from topkit.indexers.spec import parse

pytestmark = pytest.mark.slow

PLUGIN = Path(__file__).parent / "plugin"
SELECTORS = "topkit_example.selectors"


def install(source: Path, target: Path) -> None:
    """What pip leaves of a package of pure Python: its modules, and what it says of itself.

    pip would fetch the package's build backend, and a machine may have no network.
    """
    project = tomllib.loads((source / "pyproject.toml").read_text())["project"]
    shutil.copytree(
        source, target, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__")
    )
    about = target / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    about.mkdir()
    said = f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    (about / "METADATA").write_text(said)
    lines = []
    for group, points in project["entry-points"].items():
        lines += [f"[{group}]", *(f"{name} = {value}" for name, value in points.items())]
    (about / "entry_points.txt").write_text("\n".join(lines) + "\n")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder of installed packages that holds the example, seen by this process and by others."""
    target = tmp_path_factory.mktemp("site")
    install(PLUGIN, target)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(target)
        path = os.pathsep.join([str(target), str(Path(topkit.__file__).parents[1])])
        patch.setenv("PYTHONPATH", path)
        yield target
    for name in [name for name in sys.modules if name.startswith("topkit_example")]:
        del sys.modules[name]


def command(*words: object, without: bool = False, code: int = 0) -> str:
    """Standard output of the console script in a process of its own, which ends with `code`."""
    env = dict(os.environ)
    if without:
        env["PYTHONPATH"] = str(Path(topkit.__file__).parents[1])
    called = [sys.executable, "-m", "topkit", *map(str, words)]
    done = subprocess.run(called, capture_output=True, text=True, env=env, cwd=sys.prefix)
    assert done.returncode == code, done.stderr
    return done.stdout


def test_a_plugins_names_are_names(site: Path) -> None:
    made = parse("leading:dims=4")
    assert repr(made) == f"{SELECTORS}:leading(dims=4)"
    assert parse(repr(made)) == made == topkit.indexer(f"{SELECTORS}:leading:dims=4")
    assert parse("keep(leading(dims=4), sink=2)") == keep(made, sink=2)
    assert parse(f"{SELECTORS}:twice(leading, note='a, b')").base == parse("leading()")  # type: ignore[attr-defined]
    assert task_name(make_task("echo:verb=shouts")) == "topkit_example.tasks:Echo:verb=shouts"
    with pytest.raises(InputError, match="unknown indexer 'leadin'; did you mean 'leading'"):
        parse("leadin")
    with pytest.raises(InputError, match="echo has no parameter 'verbs'; did you mean 'verb'"):
        make_task("echo:verbs=x")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("absent", "'absent' of the package topkit-example cannot be imported .*No module named"),
        ("broken", "package topkit-example cannot be imported .*RuntimeError: not on this machine"),
        ("numbers", "package topkit-example, is no indexer: expected a class derived from"),
        (
            "topkit_example.broken:broken",
            "cannot import topkit_example.broken: RuntimeError: not on",
        ),
    ],
)
def test_a_plugin_that_cannot_be_used_is_named(site: Path, name: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        parse(name)
    assert parse("sign()") and parse("leading()")


def test_a_name_of_two_packages_names_both(
    site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other"
    shutil.copytree(PLUGIN, other)
    text = (other / "pyproject.toml").read_text().replace('"topkit-example"', '"topkit-another"')
    text = text.replace(
        'leading = "topkit_example.selectors:leading"',
        'leading = "other:leading"\nsign = "other:sign"',
    )
    (other / "pyproject.toml").write_text(text)
    install(other, tmp_path / "site")
    monkeypatch.syspath_prepend(tmp_path / "site")
    with pytest.raises(
        InputError, match="two packages, topkit-another and topkit-example; write other:leading or"
    ):
        parse("leading")
    assert parse("sign()") == INDEXERS["sign"]()
    shown = {(row["name"], row["package"]): row["cost"] for row in listing.rows("indexers")}
    assert shown["sign", "topkit"] == INDEXERS["sign"].cost
    assert shown["sign", "topkit-another"] == "hidden by topkit's own sign; write other:sign"
    assert "two packages" in shown["leading", "topkit-another and topkit-example"]


def test_list_shows_plugins_with_their_package(site: Path) -> None:
    rows = {row["name"]: row for row in json.loads(command("list", "indexers", "--json"))}
    assert rows["leading"]["package"] == "topkit-example"
    assert rows["leading"]["parameters"] == "dims=8" and rows["leading"]["family"] == "projected"
    assert "RuntimeError: not on this machine" in rows["broken"]["cost"]
    assert {name for name, row in rows.items() if row["package"] == "topkit"} == set(INDEXERS)
    tasks = {row["name"]: row for row in listing.rows("tasks")}
    assert tasks["echo"]["package"] == "topkit-example"
    assert tasks["echo"]["asks"] == "the name that was said"


def test_nothing_looks_for_plugins_before_a_name_is_unknown() -> None:
    code = (
        "import topkit.grammar.registry as registry\n"
        "def fail(**words): raise AssertionError('entry points were read')\n"
        "registry.entry_points = fail\n"
        "from topkit.indexers.spec import parse\n"
        "from topkit.experiments.tasks import make_task\n"
        "parse('keep(quantized:dtype=int4, sink=2)'); make_task('niah-multikey:digits=3')\n"
        "parse('topkit.indexers.sign:sign')"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_measure_and_its_rerun(site: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    tensors = (torch.randn(1, 2, 2, 16), torch.randn(1, 1, 64, 16), torch.randn(1, 1, 64, 16))
    folder, out = tmp_path / "capture", tmp_path / "out"
    topkit.Capture.from_tensors(*tensors).save(folder)
    specs = ["leading:dims=4", f"keep({SELECTORS}:twice(leading, note='a, b'), sink=2)"]
    first = topkit.measure(folder, specs, 8, out=out, jobs=2)
    names = sorted(set(first.table["indexer"].to_pylist()))
    assert names == sorted(map(repr, map(parse, specs)))
    parts = sorted((out / "fidelity").iterdir())
    words = [word for name in names for word in ("--indexer", name)]
    rows = json.loads(command("measure", folder, *words, "-k", 8, "--out", out, "--json"))
    assert sorted(row["indexer"] for row in rows) == names
    assert sorted((out / "fidelity").iterdir()) == parts  # nothing was computed anew
    # Rows of a class that is not at hand stand beside those that are.
    shown = command("measure", folder, "--indexer", "sign", "-k", 8, "--out", out, without=True)
    assert "selectors:leading" in "".join(shown.split())


@pytest.fixture(scope="module")
def run(site: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the example's task and indexer, by worker processes."""
    out = tmp_path_factory.mktemp("run")
    command(
        *("evaluate", "reference", "--task", "echo:verb=shouts", "--length", 256, "--samples", 2),
        *("--indexer", "leading:dims=4", "--indexer", "sign", "-k", 8, "--jobs", 2, "--out", out),
    )
    return out


TASK = "topkit_example.tasks:Echo:verb=shouts"
INDEXER = f"{SELECTORS}:leading(dims=4)"


def test_evaluate_its_rerun_and_its_report(run: Path) -> None:
    table = read_table(run / "accuracy")
    assert set(table["task"].to_pylist()) == {TASK}
    assert set(table["indexer"].to_pylist()) == {"dense", "sign()", INDEXER}
    parts = sorted((run / "accuracy").iterdir())
    again = topkit.evaluate(*("reference", TASK, 256, 2, [INDEXER, "sign"], 8), out=run)
    assert again is not None and again.num_rows == table.num_rows
    assert sorted((run / "accuracy").iterdir()) == parts
    # Full attention scores nothing here: no loss could show.
    path = command("report", run, "--require", "leading:dims=4", "-k", 8, code=UNDECIDED)
    page = Path(path.strip()).read_text()
    assert f"{INDEXER}</code>" in page and "shown by its name" not in page


def test_a_run_is_reported_where_its_package_is_not(run: Path) -> None:
    gate = ("--require", INDEXER, "-k", 8)
    page = Path(command("report", run, *gate, without=True, code=UNDECIDED).strip()).read_text()
    assert f"{INDEXER}</code>" in page
    note = f"{INDEXER} is shown by its name, and counts as a real indexer: no module"
    assert note in page


def test_an_object_of_a_function_is_evaluated_and_reported(tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class local(INDEXERS["sign"]):  # type: ignore[misc]
        pass

    assert issubclass(local, Scored)
    table = topkit.evaluate("reference", "niah-single", 256, 1, [local(), "sign"], 8, out=tmp_path)
    assert table is not None
    name = next(x for x in set(table["indexer"].to_pylist()) if "<locals>" in x)
    page = write_report(tmp_path).read_text()
    assert "&lt;locals&gt;.local()" in page and "counts as a real indexer" in page
    assert name.endswith("local()")


def test_a_recipe_of_ones_own_joins_a_leaderboard_by_one_command(
    site: Path, tmp_path: Path
) -> None:
    keys = (
        "leaderboard: true\ntasks: ['niah-single:wording=trained']\nlengths: [256]\nhaystacks: 2\n"
        "budgets: [8]\nbudget: bytes=0.08\ndtype: float32\npilot: false\nindexers: [exact(), quest(), random()]\n"
    )
    (tmp_path / "small.yaml").write_text(keys)
    command("study", tmp_path / "small.yaml", "--indexer", INDEXER, "--out", tmp_path / "run")
    page = (tmp_path / "run" / "leaderboard.md").read_text()
    (row,) = [line for line in page.splitlines() if line.startswith(f"| `{SELECTORS}:leading(dims=4)`")]  # fmt: skip
    assert row.split(" | ")[1] == "projected" and "1 to 3" in row
    # It is shown where its class is not at hand.
    command("report", tmp_path / "run", without=True)
    assert (tmp_path / "run" / "leaderboard.md").read_text().count("leading(dims=4)") >= 1
