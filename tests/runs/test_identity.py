"""What an indexer or task holds beside its name: a rerun with other contents is refused by that name."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import topkit
from tiny import lightning_for
from topkit.errors import InputError
from topkit.experiments.runs.identity import contents, of_all
from topkit.experiments.tasks import TASKS, make_task
from topkit.indexers import INDEXERS
from topkit.indexers.lightning_weights import load

sign: Any = INDEXERS["sign"]
lightning: Any = INDEXERS["lightning"]


def made() -> topkit.Capture:
    g = torch.Generator().manual_seed(0)
    shapes = ((1, 2, 2, 8), (1, 1, 40, 8), (1, 1, 40, 8))
    queries, keys, values = (torch.randn(shape, generator=g) for shape in shapes)
    return topkit.Capture.from_tensors(queries, keys, values)


# The bundled model's weights have a name that may come to name others.
OF_WEIGHTS = ("lightning", "misa", "projected", "indexcache()")


def test_what_comes_with_topkit_holds_no_more_than_its_name_says() -> None:
    for cls in INDEXERS.values():
        for example in cls.examples:
            if not example.startswith(OF_WEIGHTS):
                assert contents(topkit.indexer(example)) == {}
    assert not any(contents(make_task(name)) for name in TASKS)
    assert contents(topkit.indexer("lightning(weights='given')")) == {}


def test_the_weights_of_lightning_are_its_content(tmp_path: Path) -> None:
    file = tmp_path / "weights.safetensors"
    promised = Path(ast.literal_eval(lightning_for(tmp_path / "made").split("=")[1].split(",")[0]))
    promised.rename(file)  # a file whose name does not promise its content
    spec = f"lightning(weights={str(file)!r})"
    recipe, whole = topkit.indexer(spec), topkit.indexer(f"keep({spec}, sink=1)")
    before = contents(recipe)
    assert before.keys() == {"files"} and contents(whole) == before
    tensors = {name: x + 1 for name, x in load(str(file)).tensors.items()}
    metadata = load(str(file)).metadata
    other = tmp_path / "other.safetensors"
    save_file(tensors, other, metadata)
    stamp = file.stat().st_mtime_ns
    os.replace(other, file)
    os.utime(file, ns=(stamp, stamp))
    assert contents(recipe) != before and contents(whole) != before


def test_a_bundled_name_is_the_bundled_file_wherever_one_of_that_name_lies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(topkit.indexer("lightning"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "reference").write_bytes(b"none")
    (tmp_path / "int8").write_bytes(b"none")
    assert contents(topkit.indexer("lightning")) == before
    assert contents(topkit.indexer("quantized:dtype=int8")) == {}
    with pytest.raises(InputError, match="cannot read"):
        topkit.indexer("lightning:weights=./reference")


@pytest.mark.parametrize("weights", ["x" * 5000, "a\0b", ".", "nowhere.safetensors"])
def test_weights_that_are_no_file_are_refused(weights: str) -> None:
    with pytest.raises(InputError, match="lightning: no weights at"):
        lightning(weights=weights)


@dataclass(frozen=True)
class holds(sign):
    """Holds what no repr tells in full."""

    table: torch.Tensor = field(default_factory=lambda: torch.zeros(5000))


@dataclass(frozen=True)
class hides(sign):
    secret: object = field(default=None, repr=False)


@dataclass(frozen=True)
class reads(sign):
    path: Path = Path("nowhere")
    scale: float = 1.0


def changed(place: int) -> torch.Tensor:
    table = torch.zeros(5000)
    table[place] = 1
    return table


def test_equal_reprs_of_unequal_recipes_are_refused(tmp_path: Path) -> None:
    one, other = holds(changed(2000)), holds(changed(2001))
    assert repr(one) == repr(other)
    for pair in ((one, other), (hides(1), hides(2)), (hides("a"), hides(torch.ones(1)))):
        with pytest.raises(InputError, match=r"have one name and hold different things"):
            topkit.measure(made(), pair, 4, out=tmp_path / "run")
    with pytest.raises(InputError, match="have one name"):
        topkit.measure(made(), one, 4, reference=other, out=tmp_path / "run")
    assert not list(tmp_path.iterdir())
    equal = [holds(changed(2000)), holds(changed(2000))]
    assert topkit.measure(made(), equal, 4).table.num_rows == 4


def test_values_are_told_by_what_they_are_and_not_by_their_type() -> None:
    assert contents(reads(scale=np.float32(2))) == contents(reads(scale=2))  # type: ignore[arg-type]
    assert contents(hides(np.int64(3))) == contents(hides(3))
    assert contents(hides([1, 2])) == contents(hides((1, 2))) != contents(hides((2, 1)))
    assert contents(hides({"a", "b", "c"})) == contents(hides({"c", "b", "a"}))
    assert contents(hides(np.arange(3))) != contents(hides(np.arange(4)))
    for dtype in (torch.bool, torch.int64, torch.bfloat16, torch.float64):
        x = torch.tensor([0, 1, 1]).to(dtype)
        assert contents(hides(x)) == contents(hides(x.clone())) != contents(hides(x.flip(0)))


def test_files_and_folders_are_held_by_their_content(tmp_path: Path) -> None:
    recipe = reads(tmp_path / "data")
    assert "files" not in contents(recipe)
    (tmp_path / "data" / "deep").mkdir(parents=True)
    (tmp_path / "data" / "deep" / "x").write_text("1")
    before = contents(recipe)["files"]
    (tmp_path / "data" / "deep" / "x").write_text("2")
    assert contents(recipe)["files"] != before


def test_a_recipe_that_cannot_be_told_from_others_is_refused() -> None:
    with pytest.raises(InputError, match="cannot be told from others"):
        topkit.measure(made(), hides([1]), 4)


def test_a_rerun_with_other_contents_is_refused_by_name_and_other_indexers_go_on(
    tmp_path: Path,
) -> None:
    topkit.measure(made(), [hides(1), "exact"], 4, out=tmp_path)
    topkit.measure(made(), [hides(1), "sign"], 4, out=tmp_path)
    with pytest.raises(InputError, match=r"hides\(\) is not what it was .* it holds other values"):
        topkit.measure(made(), hides(2), 4, out=tmp_path)
    assert topkit.measure(made(), "exact", 4, out=tmp_path).table.num_rows == 3 * 4


@pytest.mark.parametrize("role", ["indexer", "reference"])
def test_a_file_that_changes_while_the_run_goes_on_stops_it(tmp_path: Path, role: str) -> None:
    (tmp_path / "data.bin").write_text("1")
    g = torch.Generator().manual_seed(0)
    capture = topkit.Capture.from_tensors(
        torch.randn(3, 2, 2, 8, generator=g), torch.randn(3, 1, 40, 8, generator=g)
    )
    reading = reads(tmp_path / "data.bin")
    indexer, reference = (reading, None) if role == "indexer" else ("sign", reading)
    plan = topkit.measure.plan(capture, indexer, 4, reference=reference, out=tmp_path / "run")
    with pytest.raises(InputError, match=r"a file that .*reads\(.* was changed while the run"):
        topkit.run(plan, progress=lambda e: e.done and (tmp_path / "data.bin").write_text("22"))
    assert topkit.verify(tmp_path / "run").files == 1


def test_a_capture_that_changes_while_the_run_goes_on_stops_it(tmp_path: Path) -> None:
    g = torch.Generator().manual_seed(0)
    queries, keys = torch.randn(3, 2, 2, 8, generator=g), torch.randn(3, 1, 40, 8, generator=g)
    capture = topkit.Capture.from_tensors(queries, keys).save(tmp_path / "capture")
    plan = topkit.measure.plan(capture, "sign", 4, out=tmp_path / "run")
    other = topkit.Capture.from_tensors(queries, keys + 1).save(tmp_path / "other")
    name = other.manifest["files"][1]["name"]
    os.replace(tmp_path / "other" / name, tmp_path / "capture" / name)
    with pytest.raises(InputError, match=f"{name} is not the file that was captured"):
        topkit.run(plan)
    assert topkit.verify(tmp_path / "run").files == 1


# --- code of one's own

RECIPE = """
from dataclasses import dataclass
from topkit.indexers.scored import Scored
from topkit.kernels.score import score
from mine.scales import scaled

SHARP = 2
OTHER = 1

def sharper(keys):
    return SHARP * keys

@dataclass(frozen=True)
class mine(Scored):
    def encode(self, keys, step):
        return {"kept": scaled(sharper(keys)).clone()}
    def score(self, queries, codes, step):
        return score(queries, codes["kept"])
"""
SCALES = "from .deep import FACTOR\ndef scaled(x):\n    return x * FACTOR\n"


def ask(folder: Path, *specs: str) -> subprocess.CompletedProcess[str]:
    words = [w for spec in specs for w in ("--indexer", spec)]
    command = [sys.executable, "-m", "topkit", "measure", folder / "capture", *words]
    path = os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [*map(str, command), "-k", "4", "--out", str(folder / "run")],
        env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )


@pytest.mark.slow
def test_a_rerun_after_ones_own_code_changed_is_refused_by_name(tmp_path: Path) -> None:
    made().save(tmp_path / "capture")
    package = tmp_path / "mine"
    package.mkdir()
    files = {"__init__": "", "scales": SCALES, "deep": "FACTOR = 3\n", "selectors": RECIPE}
    for name, text in files.items():
        (package / f"{name}.py").write_text(text)
    spec = "mine.selectors:mine()"
    assert ask(tmp_path, spec).returncode == 0
    harmless = RECIPE.replace("OTHER = 1", "OTHER = 5  # for something else").replace(
        "    return SHARP", "    # as sharp as it gets\n    return SHARP"
    )
    (package / "selectors.py").write_text(harmless)
    done = ask(tmp_path, spec, "sign")
    assert done.returncode == 0, done.stderr
    for name, old, new in (
        ("selectors", "SHARP = 2", "SHARP = 4"),
        ("selectors", 'codes["kept"])', '-codes["kept"])'),
        ("scales", "x * FACTOR", "x + FACTOR"),
        ("deep", "3", "4"),
    ):
        text = (package / f"{name}.py").read_text()
        (package / f"{name}.py").write_text(text.replace(old, new))
        done = ask(tmp_path, spec)
        assert done.returncode == 2
        (line,) = [one for one in done.stderr.splitlines() if "topkit:" in one]
        assert f"{spec} is not what it was" in line and "its code has changed" in line
        (package / f"{name}.py").write_text(text)
    assert ask(tmp_path, spec).returncode == 0


def test_tasks_and_indexers_of_equal_names_are_told_apart_by_their_code() -> None:
    one, other = ({"__name__": "elsewhere"}, {"__name__": "elsewhere"})
    code = "from dataclasses import dataclass\nfrom topkit.indexers import INDEXERS\n" + (
        "class own(INDEXERS['sign']):\n    def room(self):\n        return {}\n"
    )
    exec(code.format(1), one)
    exec(code.format(2), other)
    with pytest.raises(InputError, match="have one name"):
        of_all([one["own"](), other["own"]()])  # type: ignore[operator]
