"""A run's folder: whose rows stand there, and what is refused by the name of its file."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import topkit
from topkit.errors import InputError
from topkit.experiments.runs import run_file
from topkit.experiments.runs.folder import claim
from topkit.indexers import INDEXERS


def made(seed: int = 0, samples: int = 3) -> topkit.Capture:
    g = torch.Generator().manual_seed(seed)
    queries, keys, values = (
        torch.randn(samples, n, t, 8, generator=g) for n, t in ((2, 2), (1, 40), (1, 40))
    )
    return topkit.Capture.from_tensors(queries, keys, values)


def measure(out: Path | None, indexers: object = "sign", **options: object) -> list[dict]:
    table = topkit.measure(made(), indexers, 4, out=out, **options).table  # type: ignore[arg-type]
    return table.to_pylist()


def everything(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    measure(tmp_path / "run")
    return tmp_path / "run"


def first(run: Path) -> Path:
    return min((run / "fidelity").glob("*.parquet"))


def rewritten(path: Path, table: pa.Table) -> None:
    pq.write_table(table.replace_schema_metadata(pq.read_schema(path).metadata), path)


def altered(run: Path) -> Path:
    table = pq.read_table(first(run))
    place = table.column_names.index("recall")
    ones = pa.array([1.0] * len(table), table.schema.field("recall").type)
    rewritten(first(run), table.set_column(place, table.schema.field("recall"), ones))
    return first(run)


def doubled(run: Path) -> Path:
    rewritten(first(run), pa.concat_tables([pq.read_table(first(run))] * 2))
    return first(run)


def emptied(run: Path) -> Path:
    rewritten(first(run), pq.read_table(first(run)).slice(0, 0))
    return first(run)


def copied_within(run: Path) -> Path:
    copy = first(run).with_name("copy.parquet")
    return Path(shutil.copy(first(run), copy))


def swapped(run: Path) -> Path:
    """Two parts change names: each file is one that the run wrote."""
    one, two = sorted((run / "fidelity").glob("*.parquet"))[:2]
    content = one.read_bytes(), two.read_bytes()
    one.write_bytes(content[1])
    two.write_bytes(content[0])
    return one


def copied_from_another(run: Path) -> Path:
    """A part of another seed, by itself."""
    measure(run.parent / "other", seed=1)
    return Path(shutil.copy(first(run.parent / "other"), run / "fidelity"))


def copied_with_its_manifest(run: Path) -> Path:
    """A part of another seed, and what vouches for it there."""
    measure(run.parent / "other", seed=1)
    (manifest,) = (run.parent / "other" / "fidelity").glob("_manifest*")
    shutil.copy(first(run.parent / "other"), run / "fidelity")
    return Path(shutil.copy(manifest, run / "fidelity"))


def truncated(run: Path) -> Path:
    first(run).write_bytes(first(run).read_bytes()[:-9])
    return first(run)


def manifest_altered(run: Path) -> Path:
    (manifest,) = (run / "fidelity").glob("_manifest*")
    lines = manifest.read_text().splitlines(keepends=True)
    manifest.write_text("".join([lines[0], "[" * 100_000 + "\n", *lines[1:]]))
    return manifest


def manifest_removed(run: Path) -> Path:
    for manifest in (run / "fidelity").glob("_manifest*"):
        manifest.unlink()
    return first(run)


HARM = [altered, doubled, emptied, copied_within, swapped, copied_from_another, truncated]
HARM += [copied_with_its_manifest, manifest_altered, manifest_removed]


@pytest.mark.parametrize("harm", HARM, ids=lambda harm: harm.__name__)
def test_what_is_not_as_the_run_wrote_it_is_refused_by_name_until_force(harm, run: Path) -> None:
    rows = measure(None)
    path = harm(run)
    before = everything(run)
    for attempt in (
        lambda: topkit.measure.plan(made(), "sign", 4, out=run),
        lambda: measure(run),
        lambda: measure(run, ["sign", "exact"]),
        lambda: topkit.verify(run),
    ):
        with pytest.raises(InputError) as refused:
            attempt()
        assert str(path) in str(refused.value) and "\n" not in str(refused.value)
    assert everything(run) == before
    assert measure(run, force=True) == rows
    assert topkit.verify(run).files == 3


def test_a_part_that_was_deleted_is_made_again(run: Path) -> None:
    rows = measure(run)
    name = first(run)
    name.unlink()
    with pytest.raises(InputError, match=f"{name.name} is gone; run the same command again"):
        topkit.verify(run)
    assert measure(run) == rows
    assert topkit.verify(run).files == 3
    name.unlink()
    # Other cells at once: the part that was deleted never comes back, and its entry is withdrawn.
    assert len(measure(run, ["sign", "exact"])) == 2 * len(rows)
    assert not name.exists() and topkit.verify(run).files == 5


def test_a_part_under_way_is_no_fault(run: Path) -> None:
    """Killed between its entry and its name, and before its entry."""
    part = first(run)
    part.rename(part.with_name(f".{part.name}.123.tmp"))
    part.with_name(".other.parquet.123.tmp").write_bytes(b"half")
    (manifest,) = (run / "fidelity").glob("_manifest*")
    head = manifest.read_text().splitlines(keepends=True)[0]
    (run / "fidelity" / "_manifest-killed.jsonl").write_text(head + '{"part": "x.parquet", "sha')
    (run / "fidelity" / "_manifest-begun.jsonl").write_text(head[:9])
    assert topkit.verify(run).files == 2
    assert measure(run) == measure(None)
    assert topkit.verify(run).files == 3
    assert not list(run.rglob(".*.tmp"))


def test_half_a_part_of_a_worker_that_was_killed_goes_with_the_run(tmp_path: Path) -> None:
    """The run had begun; its own worker left it, and the job was done again by another."""
    plan = topkit.measure.plan(made(), "sign", 4, out=tmp_path)

    halves: list[Path] = []

    def killed(event: Any) -> None:
        if event.done == 1:
            halves.append(tmp_path / "fidelity" / ".other.parquet.123-0badcafe.tmp")
            halves[-1].write_bytes(b"half")

    topkit.run(plan, progress=killed)
    assert halves and not list(tmp_path.rglob(".*.tmp"))
    assert topkit.verify(tmp_path).files == 3


@pytest.mark.parametrize("seed", [0, 5])
def test_rows_without_a_run_belong_to_nobody(run: Path, seed: int) -> None:
    (run / "run.json").unlink()
    with pytest.raises(InputError, match="belongs to no run"):
        measure(run, seed=seed)
    with pytest.raises(InputError, match="belongs to no run"):
        topkit.verify(run)
    measure(run, seed=seed, force=True)


def test_two_parts_of_one_cell_are_refused(run: Path) -> None:
    """As two processes would leave them, each with its entry."""
    from topkit.experiments.runs.parts import write_part

    described = run_file.read(run)
    assert described is not None
    again = pq.read_table(first(run))
    job = first(run).name.partition("-")[0]
    write_part(run / "fidelity", f"{job}-zz", again, run=described["id"])
    for attempt in (lambda: measure(run), lambda: topkit.verify(run)):
        with pytest.raises(InputError, match=rf"{job}-zz\.parquet holds rows of {first(run).name}"):
            attempt()


@pytest.mark.parametrize("key", ["seed", "topkit", "id", "date"])
def test_a_run_file_that_was_edited_is_refused(run: Path, key: str) -> None:
    path = run / "run.json"
    content = json.loads(path.read_text())
    where = content if key in content else content["identity"]
    where[key] = {"seed": 1, "topkit": "0.0", "id": "0" * 32, "date": "yesterday"}[key]
    path.write_text(json.dumps(content, indent=1))
    for attempt in (lambda: measure(run), lambda: topkit.verify(run)):
        with pytest.raises(InputError, match=r"run\.json is not as it was written"):
            attempt()


def test_force_deletes_the_parts_first_and_run_json_last(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone: list[str] = []
    unlink = Path.unlink
    monkeypatch.setattr(Path, "unlink", lambda p, **o: (gone.append(p.name), unlink(p, **o))[1])
    with claim(run, {}, force=True):
        pass
    deleted = [name for name in gone if name.endswith((".parquet", ".jsonl", "run.json"))]
    kinds = [name.rpartition(".")[2] for name in deleted if name != "predictions.jsonl"]
    assert kinds == ["parquet"] * 3 + ["jsonl", "json"]


# --- a folder that goes while a run writes to it


@pytest.mark.parametrize("jobs", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_folder_that_is_renamed_stops_the_run_and_goes_on_elsewhere(
    tmp_path: Path, jobs: int
) -> None:
    capture, out = made(samples=12), tmp_path / "run"
    plan = topkit.measure.plan(capture, "sign", 4, out=out, jobs=jobs)
    with pytest.raises(InputError, match="renamed or removed while") as refused:
        topkit.run(plan, progress=lambda e: e.done == 1 and out.rename(tmp_path / "moved"))
    assert "\n" not in str(refused.value)
    assert [path.name for path in tmp_path.iterdir()] == ["moved"]
    assert 1 <= topkit.verify(tmp_path / "moved").files < 12
    rows = topkit.measure(capture, "sign", 4, out=tmp_path / "moved").table
    assert rows.equals(topkit.measure(capture, "sign", 4).table)


def test_a_folder_that_is_removed_stays_away(tmp_path: Path) -> None:
    plan = topkit.measure.plan(made(), "sign", 4, out=tmp_path / "run")
    with pytest.raises(InputError, match="renamed or removed while"):
        topkit.run(plan, progress=lambda e: e.done == 1 and shutil.rmtree(tmp_path / "run"))
    assert not list(tmp_path.iterdir())


def test_a_folder_that_another_run_took_gets_no_rows_of_the_first(tmp_path: Path) -> None:
    out = tmp_path / "run"

    def take(event: object) -> None:
        if event.done == 1:  # type: ignore[attr-defined]
            out.rename(tmp_path / "moved")
            measure(out, seed=5)

    with pytest.raises(InputError, match="renamed or removed while"):
        topkit.run(topkit.measure.plan(made(), "sign", 4, out=out), progress=take)
    assert topkit.verify(out).files == 3
    assert measure(out, seed=5) == measure(None, seed=5)


# --- what is refused leaves nothing


sign: Any = INDEXERS["sign"]


@dataclass(frozen=True)
class refuses(sign):
    """Refuses a sample that others take."""

    at: int = 0

    def encode(self, keys, step):
        if abs(keys[0, 0, 0, 0].item() - made().load(self.at, 0).keys[0, 0, 0, 0].item()) < 1e-6:
            raise InputError("refused here")
        return super().encode(keys, step)


def test_a_refused_run_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="refused here"):
        measure(tmp_path / "new" / "run", refuses())
    assert not list(tmp_path.iterdir())
    with pytest.raises(InputError, match="refused here"):
        measure(tmp_path, refuses())
    assert not list(tmp_path.iterdir())
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="refused here"):
        measure(tmp_path, refuses())
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_refused_run_leaves_an_earlier_one_as_it_was(run: Path) -> None:
    before = everything(run)
    with pytest.raises(InputError, match="refused here"):
        measure(run, refuses())
    assert everything(run) == before


def test_what_was_written_before_a_refusal_stays(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="refused here"):
        measure(tmp_path, refuses(at=1))
    assert topkit.verify(tmp_path).files == 1


def test_an_indexer_whose_package_is_not_installed_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    for spec in ("faiss_hnsw", "keep(faiss_ivf(), sink=1)"):
        with pytest.raises(InputError, match=r"needs faiss.*topkit\[faiss\]"):
            measure(tmp_path / "run", spec)
    with pytest.raises(InputError, match="needs faiss"):
        measure(tmp_path / "run", reference="faiss_ivf")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("force", [False, True])
def test_no_run_is_written_among_the_tensors_of_a_capture(tmp_path: Path, force: bool) -> None:
    made().save(tmp_path / "capture")
    before = everything(tmp_path)
    for capture in (tmp_path / "capture", made()):
        with pytest.raises(InputError, match="holds a capture"):
            topkit.measure(capture, "sign", 4, out=tmp_path / "capture", force=force)
    assert everything(tmp_path) == before


# --- what run.json says


def test_run_json_says_when_where_and_by_what(run: Path) -> None:
    content = run_file.read(run)
    assert content is not None
    assert content["identity"]["topkit"] == topkit.__version__
    assert content["date"].startswith("20") and content["machine"]["processors"]
    assert content["versions"]["torch"] == torch.__version__
    before = (run / "run.json").read_bytes()
    measure(run)
    assert (run / "run.json").read_bytes() == before  # the same machine and code: nothing to add
    measure(run, "exact")
    content = run_file.read(run)
    assert content is not None and len(content["asked"]) == 2 and not content["later"]


def test_a_run_of_an_earlier_topkit_is_refused_by_its_version(run: Path) -> None:
    content = json.loads((run / "run.json").read_text())
    content["identity"]["topkit"] = "0.1.0"
    old = {name: content[name] for name in ("identity", "asked", "machine", "versions")}
    (run / "run.json").write_text(json.dumps(old))
    manifest_removed(run)
    with pytest.raises(
        InputError, match=r"was written by topkit 0\.1\.0.*their rows are not mixed"
    ):
        measure(run)
    with pytest.raises(
        InputError, match=r"by topkit 0\.1\.0 before rows had digests.*another folder"
    ):
        topkit.verify(run)


def test_a_run_of_this_version_from_before_digests_is_told_so_and_what_to_do(run: Path) -> None:
    content = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({n: content[n] for n in ("identity", "asked")}))
    manifest_removed(run)
    for call in (lambda: measure(run), lambda: topkit.verify(run)):
        with pytest.raises(InputError, match=r"before rows had digests.*another folder") as refused:
            call()
        assert "and this is" not in str(refused.value)
