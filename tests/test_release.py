"""What a release is made of: the wheel's packing, the weight of an environment, pinned checks, what CI tries."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
import tomllib
import zlib
from pathlib import Path
from zipfile import ZIP_DEFLATED, ZipFile

import numpy as np
import pytest
import yaml

from pages import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.fixture(autouse=True)
def tools(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "tools"))


def test_tensors_of_the_wheel_are_packed_closer_and_nothing_else_changes(tmp_path: Path) -> None:
    # The upper halves of float32 are bfloat16: bytes of two kinds in turns, one of which never repeats.
    floats = np.random.default_rng(0).standard_normal(100_000).astype("<f4")
    tensors = floats.view("<u2")[1::2].tobytes()
    texts = {"topkit/a.py": b"a = 1\n" * 100, "topkit-0.dist-info/RECORD": b""}
    wheel = tmp_path / "topkit.whl"
    with ZipFile(wheel, "w", ZIP_DEFLATED) as out:
        out.writestr("topkit/b.safetensors", tensors)
        for name, text in texts.items():
            out.writestr(name, text)
    importlib.import_module("wheel_packing").repack(wheel)
    with ZipFile(wheel) as packed:
        assert packed.testzip() is None
        assert packed.namelist() == ["topkit/b.safetensors", *texts]
        assert packed.read("topkit/b.safetensors") == tensors
        assert {name: packed.read(name) for name in texts} == texts
        (entry, *_) = packed.infolist()
    assert entry.compress_type == ZIP_DEFLATED
    assert entry.compress_size < 0.99 * len(zlib.compress(tensors))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["topkit.whl"]


@pytest.mark.parametrize(("most", "code"), [("0.5", 0), ("0.2", 1)])
def test_an_environments_weight_is_told_by_package(tmp_path: Path, most: str, code: int) -> None:
    site = tmp_path / "lib" / "python3.11" / "site-packages"
    for name, size in {"big/a.py": 200_000, "big/__pycache__/a.cpython-311.pyc": 100_000}.items():
        (site / name).parent.mkdir(parents=True, exist_ok=True)
        (site / name).write_bytes(os.urandom(size))
    record = site / "big-1.dist-info"
    record.mkdir()
    (record / "METADATA").write_text("Metadata-Version: 2.1\nName: Big\nVersion: 1\n")
    (record / "RECORD").write_text("big/a.py,,\nbig-1.dist-info/METADATA,,\n")
    (site / "link.py").symlink_to(site / "big" / "a.py")
    words = [sys.executable, str(ROOT / "tools" / "install_size.py"), "--most", most, str(tmp_path)]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    first, *_, last = done.stdout.splitlines()
    assert re.fullmatch(r" +0\.3 MB  Big", first)
    assert re.fullmatch(rf" +0\.3 MB  in all, of at most {most}", last)


def test_checks_before_a_commit_are_those_of_the_environment() -> None:
    from pre_commit.clientlib import load_config

    config = load_config(str(ROOT / ".pre-commit-config.yaml"))
    hooks = [hook for repo in config["repos"] for hook in repo["hooks"]]
    assert {repo["repo"] for repo in config["repos"]} == {"local"}
    # pre-commit has two names for programs that are there already.
    assert {hook["language"] for hook in hooks} <= {"system", "unsupported"}
    needed = {re.split(r"[^\w-]", x)[0] for x in PROJECT["optional-dependencies"]["dev"]}
    for hook in hooks:
        program = hook["entry"].split()[0]
        assert program.removeprefix(".venv/bin/") in needed | {"python"}


def test_ci_installs_into_the_first_and_the_last_python_that_is_promised() -> None:
    versions = [
        x.rpartition(" ")[2] for x in PROJECT["classifiers"] if re.search(r"Python :: 3\.\d+$", x)
    ]
    assert PROJECT["requires-python"] == f">={versions[0]}"
    tried = re.findall(r"^\.ci/wheel ([\d.]+)", (ROOT / ".ci" / "run").read_text(), re.MULTILINE)
    assert sorted(tried) == [versions[0], versions[-1]]


def test_addresses_are_of_places_that_exist() -> None:
    # No host is made up: the repository has no public address yet.
    assert all(url.startswith("https://arxiv.org/abs/") for url in PROJECT["urls"].values())
    assert "http" not in (ROOT / "CITATION.cff").read_text()


def test_templates_can_be_read() -> None:
    folder = ROOT / ".github" / "ISSUE_TEMPLATE"
    for path in folder.glob("*.md"):
        head = yaml.safe_load(path.read_text().split("---")[1])
        assert head["name"] and head["about"]
    assert yaml.safe_load((folder / "config.yml").read_text())["blank_issues_enabled"]
