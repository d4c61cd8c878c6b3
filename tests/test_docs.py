"""The pages say what is so: files they name exist, code they show runs, versions agree."""

from __future__ import annotations

import inspect
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

import topkit
from pages import ROOT, code_blocks, follow
from topkit.cli.commands import app
from topkit.contract import check_indexer
from topkit.indexers import INDEXERS

AT_THE_TOP = ("README", "ARCHITECTURE", "CONTRIBUTING", "CHANGELOG", "SECURITY", "examples/README")
PAGES = [ROOT / f"{name}.md" for name in AT_THE_TOP]
PAGES += sorted((ROOT / "docs").rglob("*.md"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text()
    for target in re.findall(r"\]\(([^)]+)\)", text):
        path, _, anchor = target.partition("#")
        if re.match(r"https?://", target):
            continue
        there = page.parent / path if path else page
        assert there.exists(), f"{page.name} links to {target}"
        if anchor:
            titles = re.findall(r"^#+ (.+)$", there.read_text(), re.MULTILINE)
            slugs = [re.sub(r"[^\w\- ]", "", t).strip().lower().replace(" ", "-") for t in titles]
            assert anchor in slugs, f"{page.name} links to {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_files_named_in_code_font_exist(page: Path) -> None:
    written_by_the_reader = {f"topkit/indexers/{name}.py" for name in ("leading", "page_mean")}
    written_by_the_reader.add("topkit/experiments/tasks/colour.py")
    for name in re.findall(r"`((?:topkit|tests|benchmarks|results)/[\w./-]+)`", page.read_text()):
        assert name in written_by_the_reader or (ROOT / name).exists(), f"{page.name}: {name}"


@pytest.mark.parametrize(("place", "name"), enumerate(["leading", "page_mean"]))
def test_the_indexers_of_the_guide_keep_the_contract(
    place: int, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (code,) = code_blocks("docs/tutorials/indexer.md", "python")[place : place + 1]
    space: dict = {"__name__": name}
    # A dataclass looks its module up by name.
    monkeypatch.setitem(sys.modules, name, type(sys)(name))
    exec(compile(code, "docs/tutorials/indexer.md", "exec"), space)
    monkeypatch.setitem(INDEXERS, name, space[name])
    for spec in space[name].examples:
        check_indexer(spec)


def test_the_task_of_the_guide_makes_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    _, tokenizer = topkit.load("reference")
    space: dict = {"__name__": "colour"}
    monkeypatch.setitem(sys.modules, "colour", type(sys)("colour"))
    (code,) = code_blocks("docs/tutorials/task.md", "python")
    exec(compile(code, "docs/tutorials/task.md", "exec"), space)
    task = space["Colour"](questions=3)
    prompts = [task.sample(tokenizer, 512, n) for n in (0, 1, 0)]
    assert prompts[0] == prompts[2] != prompts[1]
    for prompt in prompts:
        assert len({q.text for q in prompt.questions}) == 3
        for q in prompt.questions:
            assert f"{q.text.strip()}{q.answer}." in prompt.text
            whole = tokenizer(prompt.text + q.text + q.answer)["input_ids"]
            assert [*prompt.ids, *q.ids, *q.answer_ids] == whole


def test_the_readme_shows_what_its_code_prints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    # Its commands are parsed below, and followed by hand: some install, others take minutes.
    assert follow("README.md", capsys, commands=False) == 1


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


def test_python_of_the_page_of_names_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for code in code_blocks("docs/api.md", "python"):
        exec(compile(code, "docs/api.md", "exec"), {"__name__": "page"})


def test_the_page_of_names_lists_what_there_is() -> None:
    """Each name stands first in a row of its tables, and nothing else is public."""
    page = (ROOT / "docs" / "api.md").read_text()
    listed = re.findall(r"^\| `topkit\.(\w+)", page, re.MULTILINE)
    assert len(listed) == len(set(listed))
    assert set(listed) == set(topkit.__all__)
    for name in listed:
        assert getattr(topkit, name) is not None
    for called, words in re.findall(r"`topkit\.(\w+)\(([^)]*)\)", page):
        known = inspect.signature(getattr(topkit, called)).parameters
        for word in words.split(", "):
            assert word == "..." or word.rstrip("=") in known, f"{called} has no {word}"


def commands_shown() -> list[list[str]]:
    blocks = [b for page in PAGES for b in code_blocks(str(page.relative_to(ROOT)), "sh")]
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    words = [shlex.split(line, comments=True) for line in lines]
    return [w[1:] for w in words if w and w[0].endswith("topkit")]


@pytest.mark.parametrize("words", commands_shown(), ids=" ".join)
def test_commands_of_the_pages_parse(words: list[str]) -> None:
    from typer.main import get_command

    group: Any = get_command(app)
    if words[0] == "--help":
        return
    assert words[0] in group.commands
    # Words are read and checked, nothing is run.
    group.commands[words[0]].make_context(words[0], words[1:])


def test_make_targets_of_the_pages_exist() -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for page in PAGES:
        named = set(re.findall(r"(?:^|`)make ([\w-]+)", page.read_text(), re.MULTILINE))
        assert named <= targets, page.name


def table_of(page: str, title: str) -> list[list[str]]:
    """The lines of a section's first table below its head, cell by cell."""
    section = (ROOT / page).read_text().split(f"\n## {title}\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_every_column_of_the_tables_is_defined_and_no_other() -> None:
    from topkit.experiments.evaluate.accuracy_rows import SCHEMA as ACCURACY
    from topkit.experiments.runs.dictionaries import plain
    from topkit.experiments.runs.fidelity_rows import SCHEMA, TABLES

    fidelity = table_of("docs/metrics.md", "Fidelity rows")
    accuracy = table_of("docs/metrics.md", "Accuracy rows")
    # As in the files: in memory strings are dictionaries.
    for rows, schema in ((fidelity, plain(SCHEMA.empty_table()).schema), (accuracy, ACCURACY)):
        types = [
            (c.name, str(c.type).replace("list<item: string>", "list of string")) for c in schema
        ]
        assert [(row[0].strip("`"), row[1]) for row in rows] == types
        assert all(row[3] for row in rows)
    letters = {"M": "measure", "R": "reduced", "A": "attach", "E": "evaluate"}
    assert set(letters.values()) == set(TABLES)
    for letter, table in letters.items():
        assert [row[0].strip("`") for row in fidelity if letter in row[5]] == TABLES[table].names


def test_one_version_everywhere() -> None:
    version = PROJECT["project"]["version"]
    assert topkit.__version__ == version
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == citation["preferred-citation"]["version"] == version
    assert f"## {version}" in (ROOT / "CHANGELOG.md").read_text()


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = dict(x.split("==") for x in lines if x and not x.startswith("#"))
    return {name.lower().replace("_", "-"): version for name, version in pinned.items()}


def required() -> set[str]:
    project = PROJECT["project"]
    extras = [x for group in project["optional-dependencies"].values() for x in group]
    everything = [*project["dependencies"], *extras, *PROJECT["build-system"]["requires"]]
    return {re.split(r"[^\w.-]", x)[0].lower().replace("_", "-") for x in everything}


def test_every_dependency_is_pinned() -> None:
    # faiss-gpu owns the same folder as faiss-cpu, and is installed by hand where there is a GPU.
    assert required() - {"faiss-gpu"} <= set(pins())
    assert pins()["torch"] == "2.13.0"


def test_users_are_given_ranges() -> None:
    assert not [x for x in PROJECT["project"]["dependencies"] if "==" in x]


def test_core_has_no_triton_and_no_models() -> None:
    core = " ".join(PROJECT["project"]["dependencies"])
    for name in ("triton", "transformers", "faiss", "altair", "vl-convert"):
        assert name not in core


@pytest.mark.slow
def test_tables_made_from_the_code_are_current() -> None:
    check = [sys.executable, ROOT / "tools" / "readme.py", "--check"]
    done = subprocess.run(check, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
