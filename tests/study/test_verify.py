"""Runs and captures held to their manifests, by `topkit verify` and at the head of a report."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import topkit
from topkit.cli.commands import app
from topkit.cli.exits import run as called
from topkit.errors import InputError
from topkit.experiments.capture import manifest
from topkit.experiments.runs import run_file
from topkit.experiments.runs.parts import write_part
from topkit.experiments.study.curves import load
from topkit.experiments.study.report import write_report


@pytest.fixture
def capture(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    queries, keys, values = (torch.randn(2, n, t, 8) for n, t in ((2, 3), (1, 30), (1, 30)))
    topkit.Capture.from_tensors(queries, keys, values).save(tmp_path / "capture")
    return tmp_path / "capture"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return made(tmp_path / "run")


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with its report, for copies."""
    out = made(tmp_path_factory.mktemp("told") / "run")
    write_report(out)
    return out


def made(out: Path) -> Path:
    """Two haystacks of one question, in full attention and by one indexer."""
    out.mkdir()
    setting = {"task": "t", "length": 64, "sparse_from": "question", "question": 0}
    scores = {"exact_match": 1.0, "score": 1.0, "token_accuracy": 1.0, "nll": 0.5, "kl": 0.0}
    words = {"wording": "code", "family": "trained", "answer_tokens": 3}
    cell = {"indexer": "sign()", "budget": "4", "k": 4}
    dense = {"indexer": "dense", "budget": "", "k": None}
    judged = {"layer": 0, "head": 0, "level": "head", "trivial": False, "recall": 0.5, "mass": 0.5}
    more = {"output_error": 0.1, "kept": 4.0, "bytes_read": 64.0, "index_bytes": 64.0}
    identity = {"seed": 7, "topkit": topkit.__version__, "device": "cpu"}
    name = run_file.describe(out, identity, tasks=[])
    for n in (0, 1):
        accuracy = [{**setting, **one, **scores, **words, "haystack": n} for one in (dense, cell)]
        fidelity = [{**setting, **cell, **judged, **more, "haystack": n}]
        write_part(out / "fidelity", f"part-{n}", pa.Table.from_pylist(fidelity), run=name)
        write_part(out / "accuracy", f"part-{n}", pa.Table.from_pylist(accuracy), run=name)
    return out


def harmed(path: Path) -> Path:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    return path


def test_what_is_as_it_was_written_is_said_so(
    run: Path, capture: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path, kind, files in ((run, "run", 4), (capture, "capture", 2)):
        assert (verified := topkit.verify(path)).kind == kind and verified.files == files
        assert called(app, ["verify", str(path)]) == 0
        assert capsys.readouterr().out == (
            f"{path}: a {kind} of {files} files, each as it was written\n"
        )
        assert called(app, ["verify", str(path), "--json"]) == 0
        told = json.loads(capsys.readouterr().out)
        assert told == {"path": str(path), "kind": kind, "files": files, "faults": []}


def test_every_file_at_fault_is_named(
    run: Path, capture: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path, pattern in ((run, "accuracy/*.parquet"), (capture, "*.safetensors")):
        names = [str(harmed(file)) for file in sorted(path.glob(pattern))]
        with pytest.raises(InputError, match=re.escape(names[0])):
            topkit.verify(path)
        assert called(app, ["verify", str(path)]) == 2
        out, err = capsys.readouterr()
        assert out == "" and len(err.splitlines()) == 2
        assert all(name in err for name in names)
        assert called(app, ["verify", str(path), "--json"]) == 2
        faults = json.loads(capsys.readouterr().out)["faults"]
        assert [name in fault for name, fault in zip(names, faults, strict=True)] == [True, True]


def test_a_file_that_was_copied_into_a_capture_is_named(capture: Path) -> None:
    (capture / "sample-00009-layer-000.safetensors").write_bytes(b"")
    with pytest.raises(InputError, match=r"sample-00009.* is not of this capture"):
        topkit.verify(capture)


def test_an_interrupted_capture_is_held_to_what_it_has(capture: Path) -> None:
    whole = manifest.open_manifest(capture)
    done = [entry for entry in whole["files"] if entry["sample"] == 0]
    content = {**manifest.FORMAT, "origin": whole["origin"], "samples": whole["samples"][:1]}
    (capture / "sample-00000.json").write_bytes(manifest.seal({**content, "files": done}))
    (capture / manifest.MANIFEST).unlink()
    assert topkit.verify(capture).files == 1
    harmed(capture / done[0]["name"])
    with pytest.raises(InputError, match=done[0]["name"]):
        topkit.verify(capture)


@pytest.mark.parametrize("what", ["nowhere", "empty", "file", "a" * 5000, "a\0b"])
def test_what_is_neither_is_refused(tmp_path: Path, what: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(
        InputError, match=r"neither a run .* nor a capture|expected the folder of a|cannot read '"
    ):
        topkit.verify(tmp_path / what)


@pytest.mark.parametrize("table", ["accuracy", "fidelity", "curve/haystacks", "curve/heads"])
def test_a_report_of_rows_that_were_altered_is_refused_by_name(
    told: Path, tmp_path: Path, table: str
) -> None:
    run = Path(shutil.copytree(told, tmp_path / "run"))
    (run / "report.html").unlink()
    part = harmed(min((run / table).glob("*.parquet")))
    for read in (write_report, load):
        with pytest.raises(InputError, match=f"{re.escape(str(part))} was altered"):
            read(run)
    assert not (run / "report.html").exists()


def test_a_report_of_rows_that_were_copied_in_deleted_or_of_no_run_is_refused(run: Path) -> None:
    copy = run / "accuracy" / "part-2.parquet"
    copy.write_bytes((run / "accuracy" / "part-1.parquet").read_bytes())
    with pytest.raises(InputError, match=r"part-2\.parquet was not written by this run"):
        write_report(run)
    copy.unlink()
    (run / "fidelity" / "part-1.parquet").rename(run / "kept")
    with pytest.raises(InputError, match=r"part-1\.parquet is gone; run the same command again"):
        write_report(run)
    (run / "kept").rename(run / "fidelity" / "part-1.parquet")
    (run / "run.json").unlink()
    with pytest.raises(InputError, match="belongs to no run"):
        write_report(run)


def test_fidelity_of_a_job_that_was_not_finished_is_left_out(run: Path) -> None:
    described = run_file.read(run)
    assert described is not None
    before = load(run)
    table = pa.Table.from_pylist(
        [
            {**row, "recall": 0.0, "haystack": 2}
            for row in pq.read_table(run / "fidelity").to_pylist()
        ]
    )
    write_part(run / "fidelity", "part-2", table, run=described["id"])
    (one,), (other,) = before, load(run)
    assert [grid.tolist() for grid in one.heads.values()] == [
        grid.tolist() for grid in other.heads.values()
    ]


def test_the_head_of_a_report_says_version_date_seed_machine_and_commit(run: Path) -> None:
    described = run_file.read(run)
    assert described is not None
    page = write_report(run).read_text()
    machine = described["machine"]
    for word in (
        f"topkit {topkit.__version__}",
        f"begun on {described['date']}",
        "seed 7",
        machine["platform"],
        f"{machine['processors']} processors",
        *([f"commit {described['commit']}"] if "commit" in described else []),
    ):
        assert word in page.partition("<h2>The run</h2>")[2]


def test_a_report_of_an_earlier_run_says_that_nothing_vouches_for_its_rows(run: Path) -> None:
    content = json.loads((run / "run.json").read_text())
    content["identity"]["topkit"] = "0.1.0"
    (run / "run.json").write_text(json.dumps({n: content[n] for n in ("identity", "asked")}))
    with pytest.raises(InputError, match=r"is not of this run, which has no digests"):
        write_report(run)  # rows that were vouched for lose no word by losing their name
    for path in run.rglob("_manifest*"):
        path.unlink()
    page = write_report(run).read_text()
    assert "Rows by topkit 0.1.0, seed 7, which kept no digests" in page
