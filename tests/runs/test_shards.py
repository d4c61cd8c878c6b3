"""Shards of one run: each a share, together the rows of one process; in one folder or each in its own."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import topkit
from topkit.errors import InputError
from topkit.experiments.runs import folder, run_file
from topkit.experiments.runs.lock import by_turns, locked, shared
from topkit.experiments.runs.parts import read_table
from topkit.experiments.runs.shards import WHOLE, Shard, parse_shard


def made(samples: int = 5) -> topkit.Capture:
    g = torch.Generator().manual_seed(0)
    shapes = ((samples, 2, 2, 8), (samples, 1, 40, 8), (samples, 1, 40, 8))
    queries, keys, values = (torch.randn(shape, generator=g) for shape in shapes)
    return topkit.Capture.from_tensors(queries, keys, values)


def measure(out: Path | None, indexers: object = ("sign", "exact"), **options: object) -> pa.Table:
    return topkit.measure(made(), indexers, 4, out=out, **options).table  # type: ignore[arg-type]


@given(st.integers(1, 9), st.integers(0, 40))
def test_every_job_is_of_one_shard(of: int, jobs: int) -> None:
    shards = [parse_shard(f"{number}/{of}") for number in range(of)]
    for place in range(jobs):
        assert sum(shard.holds(place) for shard in shards) == 1
    assert [shard.whole for shard in shards] == [of == 1] * of
    assert parse_shard(None) == WHOLE and parse_shard(shards[-1]) is shards[-1]


@pytest.mark.parametrize(
    "text", ["4/4", "5/4", "0/0", "1", "-1/4", "1/", "a/b", "1/4/2", "1.0/2", ""]
)
def test_a_shard_out_of_range_is_refused_in_a_line(text: str, tmp_path: Path) -> None:
    for attempt in (
        lambda: parse_shard(text),
        lambda: topkit.measure.plan(made(), "sign", 4, out=tmp_path / "run", shard=text),
    ):
        with pytest.raises(
            InputError, match=r"a shard is I/N, counted from 0: 0/\d+ to"
        ) as refused:
            attempt()
        assert "\n" not in str(refused.value)
    assert not list(tmp_path.iterdir())


def test_shards_in_one_folder_leave_the_rows_of_one_process(tmp_path: Path) -> None:
    whole, out = measure(None), tmp_path / "run"
    for number in (2, 0, 1, 2):
        own = measure(out, shard=f"{number}/3")
        kept = [n for n in range(5) if n % 3 == number]
        assert own.to_pylist() == [row for row in whole.to_pylist() if row["sample"] in kept]
    assert topkit.verify(out).files == 5
    plan = topkit.measure.plan(made(), ("sign", "exact"), 4, out=out)
    assert plan.done == 5 and not plan.jobs
    assert measure(out).equals(whole)


def test_a_shard_of_a_measurement_that_goes_into_no_folder() -> None:
    parts = [measure(None, shard=f"{number}/7") for number in range(7)]
    assert [part.num_rows > 0 for part in parts] == [True] * 5 + [False] * 2
    assert pa.concat_tables(parts).num_rows == measure(None).num_rows


def test_shards_write_to_one_folder_at_the_same_time(tmp_path: Path) -> None:
    """One begins, ends and is killed while others are at work; an ordinary run is kept out."""
    out, whole = tmp_path / "run", measure(None)

    def other(event: object) -> None:
        if event.done == 1:  # type: ignore[attr-defined]
            measure(out, shard="1/3")
            with pytest.raises(InputError, match="another run is writing"):
                measure(out)
            with pytest.raises(InputError, match="another process writes the same shard"):
                measure(out, shard="0/3")
            with pytest.raises(InputError, match="shards of another command"):
                measure(out, shard="1/2")
            with pytest.raises(InputError, match="shards of another command"):
                measure(out, ["sign", "quest"], shard="2/3")
            assert topkit.verify(out).files == 3

    plan = topkit.measure.plan(made(), ("sign", "exact"), 4, out=out, shard="0/3")
    topkit.run(plan, progress=other)
    measure(out, shard="2/3")
    assert topkit.verify(out).files == 5 and measure(out).equals(whole)
    assert not [p.name for p in out.glob(".lock-shard*")]


@pytest.mark.slow
def test_shards_that_begin_at_once_make_one_run(tmp_path: Path) -> None:
    """Four processes, one folder, none of it there."""
    made().save(tmp_path / "capture")
    code = (
        "import sys, topkit\n"
        "topkit.measure(sys.argv[1], ('sign', 'exact'), 4, out=sys.argv[2], shard=sys.argv[3])\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "capture"), str(tmp_path / "run")]
    started = [subprocess.Popen([*command, f"{n}/2"]) for n in range(2)]
    assert [process.wait() for process in started] == [0, 0]
    assert topkit.verify(tmp_path / "run").files == 5
    rows = topkit.measure(tmp_path / "capture", ("sign", "exact"), 4, out=tmp_path / "run").table
    assert rows.equals(topkit.measure(tmp_path / "capture", ("sign", "exact"), 4).table)


def test_what_a_killed_shard_left_stays_while_another_writes(tmp_path: Path) -> None:
    """Half a part may be the other's, about to take its name; whoever begins alone deletes it."""
    out = tmp_path / "run"
    half = out / "fidelity" / ".x.parquet.1.tmp"

    def join(event: object) -> None:
        if event.done == 1:  # type: ignore[attr-defined]
            half.write_bytes(b"half")
            measure(out, shard="1/2")
            assert half.exists()

    topkit.run(
        topkit.measure.plan(made(), ("sign", "exact"), 4, out=out, shard="0/2"), progress=join
    )
    measure(out, shard="1/2")
    assert not half.exists()


def test_force_is_for_a_whole_run(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"force empties .* shard 0/2 is one of several"):
        measure(tmp_path, shard="0/2", force=True)
    assert measure(tmp_path, shard="0/1", force=True).num_rows


def test_a_shard_that_is_refused_leaves_nothing_and_takes_nothing_from_others(
    tmp_path: Path,
) -> None:
    out = tmp_path / "new" / "run"

    def refused(shard: Shard) -> None:
        with folder.claim(out, {}, who=folder.Who(shard, "x")) as hold:
            run_file.describe(out, {})
            hold.begun()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        refused(Shard(0, 2))
    assert not list(tmp_path.iterdir())
    with folder.claim(out, {}, who=folder.Who(Shard(0, 2), "x")) as hold:
        run = run_file.describe(out, {})
        hold.begun()
        with pytest.raises(ZeroDivisionError):
            refused(Shard(1, 2))
        described = run_file.read(out)
        assert described is not None and described["id"] == run


def test_the_lock_of_shards(tmp_path: Path) -> None:
    with shared(tmp_path, "0", "a") as one:
        assert one.alone
        one.begun()
        with shared(tmp_path, "1", "a") as other:
            assert not other.alone
            other.begun()
            with by_turns(tmp_path):
                pass
        with pytest.raises(InputError, match="another run"), locked(tmp_path):
            pass
        assert one.last()
    whole, shard = locked(tmp_path), shared(tmp_path, "0", "a")
    with whole, pytest.raises(InputError, match="another run"), shard:
        pass


# --- runs joined


def written(out: Path, **options: object) -> Path:
    measure(out, **options)
    return out


def rows_of(run: Path) -> list[dict]:
    keys = ("indexer", "sample", "layer", "level", "head", "position")
    table = read_table(run / "fidelity").sort_by([(key, "ascending") for key in keys])
    return table.replace_schema_metadata().to_pylist()


def test_shards_in_folders_of_their_own_are_merged(tmp_path: Path) -> None:
    runs = [written(tmp_path / str(n), shard=f"{n}/3") for n in range(3)]
    whole = written(tmp_path / "whole")
    before = {path: path.read_bytes() for run in runs for path in run.rglob("*.parquet")}
    out = topkit.merge(runs, tmp_path / "all")
    assert topkit.verify(out).files == 5 and rows_of(out) == rows_of(whole)
    assert not topkit.measure.plan(made(), ("sign", "exact"), 4, out=out).jobs
    # Again, with a run that has all of it: nothing is doubled.
    topkit.merge([*runs, whole], out)
    assert topkit.verify(out).files == 5 and rows_of(out) == rows_of(whole)
    assert before == {path: path.read_bytes() for run in runs for path in run.rglob("*.parquet")}
    described = run_file.read(out)
    assert described is not None and len(described["asked"]) == 1 and not described["later"]


def test_rows_that_overlap_in_part_stand_there_once(tmp_path: Path) -> None:
    one = written(tmp_path / "1", indexers=["sign", "exact"])
    two = written(tmp_path / "2", indexers=["quest", "exact"])
    out = topkit.merge([one, two], tmp_path / "out")
    whole = written(tmp_path / "whole", indexers=["sign", "exact", "quest"])
    assert topkit.verify(out).files == 10 and rows_of(out) == rows_of(whole)
    assert not topkit.measure.plan(made(), ["sign", "exact", "quest"], 4, out=out).jobs


def first(run: Path) -> Path:
    return min((run / "fidelity").glob("*.parquet"))


def test_other_numbers_under_one_identity_are_refused_by_name(tmp_path: Path) -> None:
    """As two machines may leave them, each with its digests."""
    one, two = written(tmp_path / "1"), written(tmp_path / "2")
    path = first(two)
    table = pq.read_table(path)
    place = table.column_names.index("mass")
    zeros = pa.array([0.0] * len(table), table.schema.field("mass").type)
    (manifest,) = (two / "fidelity").glob("_manifest*")
    from topkit.experiments.runs.manifest import sha256

    before = sha256(path)
    pq.write_table(table.set_column(place, table.schema.field("mass"), zeros), path)
    manifest.write_text(manifest.read_text().replace(before, sha256(path)))
    assert topkit.verify(two).files == 5
    with pytest.raises(InputError, match=r"hold different rows of exact\(\) at 4") as refused:
        topkit.merge([one, two], tmp_path / "out")
    assert str(path) in str(refused.value) and str(first(one)) in str(refused.value)
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_merged_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    one, two = written(tmp_path / "1"), written(tmp_path / "2", seed=1)
    with pytest.raises(InputError, match=r"2 and .*1 are different runs \(seed differ\)"):
        topkit.merge([one, two], tmp_path / "out")
    for out in (one, one / "fidelity", tmp_path / "x" / ".." / "1"):
        with pytest.raises(InputError, match="or lies within it"):
            topkit.merge([one], out)
    with pytest.raises(InputError, match=r"holds no run: expected .*run\.json"):
        topkit.merge([one, tmp_path / "none"], tmp_path / "out")
    with pytest.raises(InputError, match="no run to merge"):
        topkit.merge([], tmp_path / "out")
    with pytest.raises(InputError, match="holds another run"):
        topkit.merge([one], two)
    first(one).write_bytes(first(one).read_bytes()[:-9])
    with pytest.raises(InputError, match="was altered"):
        topkit.merge([one], tmp_path / "out")
    shutil.rmtree(one)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["2"]


def test_a_merge_that_was_killed_is_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs, taken = [written(tmp_path / str(n), shard=f"{n}/2") for n in range(2)], []
    from topkit.experiments.evaluate import merge as module

    copy = module.copy_part

    def killed(*words: object) -> Path:
        taken.append(words)
        if len(taken) == 3:
            raise KeyboardInterrupt
        return copy(*words)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "copy_part", killed)
    with pytest.raises(KeyboardInterrupt):
        topkit.merge(runs, tmp_path / "out")
    assert topkit.verify(tmp_path / "out").files == 2
    topkit.merge(runs, tmp_path / "out")
    assert topkit.verify(tmp_path / "out").files == 5
