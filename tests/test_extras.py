"""What topkit says, and takes back, of packages that it may do without."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import topkit
from topkit.errors import EXTRA_OF, InputError, MissingExtra, extras_named

# A process in which some packages are not there.
WITHOUT = """
from importlib.machinery import PathFinder

find = PathFinder.find_spec
PathFinder.find_spec = classmethod(
    lambda cls, name, *rest: None if name.partition(".")[0] in {absent!r} else find(name, *rest)
)
import torch, topkit
"""
CAPTURE = "capture = topkit.Capture.from_tensors(*(torch.randn(1, 2, 9, 8) for _ in range(3)))"
NEEDS = {
    "topkit.attach": "transformers",
    "topkit.capture": "transformers",
    "topkit.evaluate": "transformers",
    "topkit.load('reference')": "transformers",
    "import topkit.experiments.decode.harness": "lm_eval",
    f"{CAPTURE}; topkit.measure(capture, ['faiss_ivf'], 4)": "faiss",
    f"{CAPTURE}; topkit.measure(capture, ['sign'], 4, runner='ray')": "ray",
    "from topkit.kernels.select_topk import select_topk; select_topk(torch.randn(9), 2, backend='triton')": "triton",
}


@pytest.mark.slow
@pytest.mark.parametrize(("statement", "package"), NEEDS.items())
def test_what_is_missing_names_its_extra(statement: str, package: str) -> None:
    code = (
        WITHOUT.format(absent={package, *EXTRA_OF})
        + f"""
try:
    {statement}
except topkit.InputError as error:
    print(type(error).__name__, error)
"""
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert f"needs {package}" in done.stdout, done
    assert f"pip install 'topkit[{EXTRA_OF[package]}]'" in done.stdout, done


@pytest.mark.slow
def test_a_study_without_what_a_cell_needs_is_refused_before_its_pilot(tmp_path: Path) -> None:
    file, out = tmp_path / "study.yaml", tmp_path / "run"
    file.write_text(
        "tasks: [niah-single]\nlengths: 512\nhaystacks: 2\nbudgets: 8\n"
        "indexers: ['keep(faiss_ivf(),sink=4)']\npilot: {haystacks: 1, exact_between: [0, 1]}\n"
    )
    code = WITHOUT.format(absent={"faiss"}) + "from topkit.cli import main\nmain()"
    words = ["study", str(file), "--out", str(out)]
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done.stderr
    assert "needs faiss, which is not installed; pip install 'topkit[faiss]'" in done.stderr
    assert not out.exists()


# What only pages need.
DRAWING = {package for package, extra in EXTRA_OF.items() if extra == "report"}
SHARDED = """
model: {model}
tasks: ["niah-single:wording=trained"]
lengths: 256
haystacks: 2
indexers: [exact]
budgets: [50%]
pilot: false
"""
TRAINS = (
    SHARDED
    + """
kind: topk-sft
training: {{ratios: [50%], steps: 1, rows: 1, length: 48, warmup: 1}}
"""
)


@pytest.mark.slow
@pytest.mark.parametrize("lines", [SHARDED, TRAINS], ids=["a curve", "one that trains"])
def test_shards_run_where_nothing_can_be_drawn_and_a_whole_study_is_refused(
    lines: str, tmp_path: Path
) -> None:
    from tests.tiny import READS_REFERENCE, folder, tiny

    model = folder(tmp_path / "model", tiny("qwen3", **READS_REFERENCE))
    file, out = tmp_path / "study.yaml", tmp_path / "run"
    file.write_text(lines.format(model=model))
    code = WITHOUT.format(absent=DRAWING) + "from topkit.cli import main\nmain()"

    def study(*more: str) -> subprocess.CompletedProcess[str]:
        words = [
            sys.executable,
            "-c",
            code,
            "study",
            str(file),
            "--out",
            str(out),
            "--jobs",
            "1",
            *more,
        ]
        return subprocess.run(words, capture_output=True, text=True)

    refused = study()
    assert refused.returncode == 2 and "pip install 'topkit[report]'" in refused.stderr
    assert refused.stderr.count("\n") == 1 and not out.exists()
    for shard in ("0/2", "1/2"):
        done = study("--shard", shard)
        assert (done.returncode, done.stdout) == (0, f"{out}\n"), done.stderr
        said = done.stderr.splitlines()[-1]
        assert "pip install 'topkit[report]'" in said and f"`topkit report {out}` writes it" in said
    assert not (out / "report.html").exists()
    assert topkit.report(out) == out / "report.html"
    page = (out / "report.html").read_text()
    assert "Not finished" not in page and "is not there yet" not in page


@pytest.mark.slow
@pytest.mark.parametrize("command", ["measure", "evaluate"])
def test_shards_of_runs_need_nothing_that_draws(command: str, tmp_path: Path) -> None:
    from tests.tiny import READS_REFERENCE, folder, tiny

    out = tmp_path / "run"
    if command == "measure":
        one = torch.randn(2, 2, 9, 8)
        topkit.Capture.from_tensors(one, one, one).save(tmp_path / "capture")
        words = [str(tmp_path / "capture"), "-k", "4"]
    else:
        model = folder(tmp_path / "model", tiny("qwen3", **READS_REFERENCE))
        words = [
            str(model),
            "--task",
            "niah-single",
            "--length",
            "256",
            "--samples",
            "2",
            "-k",
            "4",
        ]
    code = WITHOUT.format(absent=DRAWING) + "from topkit.cli import main\nmain()"
    words = ["-c", code, command, *words, "--indexer", "sign", "--out", str(out)]
    for shard in ("0/2", "1/2"):
        line = [sys.executable, *words, "--shard", shard]
        done = subprocess.run(line, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    assert topkit.verify(out).files >= 2


@pytest.mark.slow
def test_the_core_measures_without_any_extra() -> None:
    code = WITHOUT.format(absent=set(EXTRA_OF)) + (
        f"{CAPTURE}\nprint(topkit.measure(capture, ['exact', 'sign', 'quest'], 4).summary())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "'indexer': 'quest" in done.stdout, done.stderr


@pytest.mark.slow
def test_the_console_script_measures_and_shows_without_any_extra(tmp_path: Path) -> None:
    out = [f"{tmp_path / name}" for name in ("capture", "run")]
    code = WITHOUT.format(absent=set(EXTRA_OF)) + (
        f"{CAPTURE}\ncapture.save({out[0]!r})\nfrom topkit.cli import main\nmain()"
    )
    words = ["measure", out[0], "--indexer", "sign", "-k", "4", "--out", out[1]]
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True)
    assert done.returncode == 0 and "sign()" in done.stdout, done.stderr


def test_other_packages_are_missed_as_ever() -> None:
    with pytest.raises(ModuleNotFoundError, match="other"), extras_named():
        raise ModuleNotFoundError("No module named 'other'", name="other")
    assert issubclass(MissingExtra, InputError)
