"""Runs kept by their means alone: joined they are what the means of all rows are."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import topkit
from topkit.errors import InputError
from topkit.experiments.evaluate import joined_means as joined_means_module
from topkit.experiments.evaluate.condensed import condensed, keep_condensed
from topkit.experiments.evaluate.haystack_means import HAYSTACK, HEAD
from topkit.experiments.evaluate.joined_means import joined_means
from topkit.experiments.runs import run_file
from topkit.experiments.runs.parts import write_part
from two_tables import part


def kept(folder: Path, *parts: tuple[str, int, tuple[int, ...]]) -> Path:
    """A run's means, of some parts with their haystacks, without its rows."""
    folder.mkdir()
    for name, seed, haystacks in parts:
        part(folder, name, seed, haystacks)
    keep_condensed(folder)
    for table in ("accuracy", "fidelity"):
        shutil.rmtree(folder / table)
    return folder


def test_means_joined_are_the_means_of_all_rows(tmp_path: Path) -> None:
    (tmp_path / "whole").mkdir()
    one, other = ("a", 1, (0, 3)), ("b", 2, (7,))
    for name, seed, haystacks in (one, other):
        part(tmp_path / "whole", name, seed, haystacks)
    haystacks, heads = condensed(tmp_path / "whole")
    out = topkit.merge([kept(tmp_path / "a", one), kept(tmp_path / "b", other)], tmp_path / "out")
    assert topkit.verify(out).faults == ()
    joined, of_heads = condensed(out)
    assert joined.select(haystacks.column_names).to_pylist() == haystacks.to_pylist()
    assert of_heads.select(HEAD).to_pylist() == heads.select(HEAD).to_pylist()
    for name in ("recall", "mass", "rows"):
        assert of_heads[name].to_pylist() == pytest.approx(heads[name].to_pylist())


def test_what_is_in_another_run_whole_counts_once(tmp_path: Path) -> None:
    one = kept(tmp_path / "a", ("a", 1, (0, 3)))
    again = kept(tmp_path / "b", ("a", 1, (0, 3)))
    out = topkit.merge([one, again], tmp_path / "out")
    assert condensed(out)[0].to_pylist() == condensed(one)[0].to_pylist()


@pytest.mark.parametrize("second", [("b", 2, (3, 5)), ("a", 1, (0, 3, 9))])
def test_a_haystack_of_two_runs_is_refused(
    second: tuple[str, int, tuple[int, ...]], tmp_path: Path
) -> None:
    runs = [kept(tmp_path / "a", ("a", 1, (0, 3))), kept(tmp_path / "b", second)]
    with pytest.raises(
        InputError, match=r"both have haystack \d of t .*count twice; keep it in one"
    ):
        topkit.merge(runs, tmp_path / "out")


def test_other_cells_of_the_same_haystacks_are_joined_with_full_attention_once(
    tmp_path: Path,
) -> None:
    one, two = kept(tmp_path / "a", ("a", 1, (0, 3))), kept(tmp_path / "b", ("b", 2, (0, 3)))
    for name in ("haystacks", "heads"):
        cells(two, name, {"sign()": "rabitq()", "shared(sign())": "shared(rabitq())"})
    out = topkit.merge([one, two], tmp_path / "out")
    assert topkit.verify(out).faults == ()
    rows, first, second = (condensed(run)[0].to_pylist() for run in (out, one, two))
    dense = [row for row in rows if row["indexer"] == "dense"]
    assert dense == [row for row in first if row["indexer"] == "dense"]
    apart = [row for row in first + second if row["indexer"] != "dense"]
    assert sorted(rows, key=str) == sorted(dense + apart, key=str)


def cells(run: Path, table: str, named: dict[str, str]) -> None:
    """Give indexers of a table other names."""
    folder, described = run / "curve" / table, run_file.read(run)
    assert described is not None
    rows = pq.read_table(folder / "rows.parquet")
    names = [named.get(name, name) for name in rows["indexer"].to_pylist()]
    place = rows.column_names.index("indexer")
    shutil.rmtree(folder)
    write_part(
        folder, "rows", rows.set_column(place, "indexer", pa.array(names)), run=described["id"]
    )


def law_beside(run: Path, law: bytes, rows: Any = None) -> Path:
    if rows is None:
        rows = pq.read_table(run / "curve" / "haystacks").select(HAYSTACK)
    table = rows.append_column("ws", pa.array([0.5] * rows.num_rows))
    described = run_file.read(run)
    assert described is not None
    table = table.replace_schema_metadata({"law": law, "reading": b"{}"})
    write_part(run / "curve" / "law", "rows", table, run=described["id"])
    return run


def test_means_of_another_law_are_not_mixed(tmp_path: Path) -> None:
    runs = [kept(tmp_path / "a", ("a", 1, (0,))), kept(tmp_path / "b", ("b", 2, (1,)))]
    law_beside(runs[0], b"one")
    with pytest.raises(InputError, match=r"b lacks curve/law, which .*a has; report it first"):
        topkit.merge(runs, tmp_path / "out")
    law_beside(runs[1], b"other")
    with pytest.raises(InputError, match="not of one law"):
        topkit.merge(runs, tmp_path / "out")


def test_means_and_rows_are_not_mixed(tmp_path: Path) -> None:
    (tmp_path / "rows").mkdir()
    part(tmp_path / "rows", "b", 2, (1,))
    with pytest.raises(
        InputError, match=r"means alone.*`topkit merge` joins runs that all have means alone"
    ):
        topkit.merge([kept(tmp_path / "a", ("a", 1, (0,))), tmp_path / "rows"], tmp_path / "out")


def test_a_report_of_several_means_says_what_joins_them(tmp_path: Path) -> None:
    runs = [kept(tmp_path / "a", ("a", 1, (0,))), kept(tmp_path / "b", ("b", 2, (1,)))]
    with pytest.raises(InputError, match="`topkit merge` joins"):
        condensed(*runs)


def test_studies_are_joined_with_the_runs_within_them(tmp_path: Path) -> None:
    """Their split of haystacks, the same in both, once; said again, it is there already."""
    for name, seed in (("a", 1), ("b", 2)):
        run = kept(tmp_path / name, (name, seed, (seed,)))
        kept(run / "heads", ("h", 9, (100,)))
        (run / "study.json").write_text('{"study": "law"}')
    out = tmp_path / "out"
    for _ in range(2):
        topkit.merge([tmp_path / "a", tmp_path / "b"], out)
    places = {place: condensed(out / place)[0]["haystack"].to_pylist() for place in (".", "heads")}
    assert {place: set(own) for place, own in places.items()} == {".": {1, 2}, "heads": {100}}
    assert (out / "study.json").read_text() == '{"study": "law"}'


def altered(run: Path, name: str, change: Callable[[pa.Table], pa.Table]) -> Path:
    path = run / "curve" / name / "rows.parquet"
    pq.write_table(change(pq.read_table(path)), path)
    return run


@pytest.mark.parametrize("absent", ["null", "no column"])
def test_a_mean_that_one_run_lacks_is_the_other_runs_alone(absent: str, tmp_path: Path) -> None:
    def without(table: pa.Table) -> pa.Table:
        nulls = pa.nulls(len(table), pa.float64())
        bare = table.drop_columns(["mass"])
        return bare if absent == "no column" else bare.append_column("mass", nulls)

    one, other = kept(tmp_path / "a", ("a", 1, (0,))), kept(tmp_path / "b", ("b", 2, (1,)))
    heads = pq.read_table(other / "curve" / "heads" / "rows.parquet").to_pylist()
    altered(one, "heads", without)
    joined = {tuple(row[key] for key in HEAD): row for row in heads_of([one, other])}
    for row in heads:
        its = joined[tuple(row[key] for key in HEAD)]
        assert its["mass"] == pytest.approx(row["mass"])
        assert its["rows"] >= row["rows"]


def heads_of(runs: list[Path]) -> list[dict[str, Any]]:
    return joined_means(runs)["curve/heads"].to_pylist()


def test_a_law_that_has_a_haystack_of_another_run_is_refused(tmp_path: Path) -> None:
    """As a table has that was made of more rows than the one beside it."""
    runs = [kept(tmp_path / "a", ("a", 1, (0,))), kept(tmp_path / "b", ("b", 2, (1,)))]
    of_both = [pq.read_table(run / "curve" / "haystacks").select(HAYSTACK) for run in runs]
    law_beside(runs[0], b"one", pa.concat_tables(of_both))
    law_beside(runs[1], b"one")
    with pytest.raises(InputError, match=r"both have haystack 1 of t \(.*curve/law"):
        topkit.merge(runs, tmp_path / "out")


def test_a_refused_merge_leaves_nothing_behind(tmp_path: Path) -> None:
    runs = [kept(tmp_path / "a", ("a", 1, (0,))), kept(tmp_path / "b", ("b", 2, (1,)))]
    law_beside(runs[0], b"one")
    law_beside(runs[1], b"other")
    with pytest.raises(InputError, match="not of one law"):
        topkit.merge(runs, tmp_path / "out")
    left = tmp_path / "out"
    assert not left.exists() or not any(path.is_file() for path in left.rglob("*"))


def test_a_merge_that_was_killed_is_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = [kept(tmp_path / "a", ("a", 1, (0,))), kept(tmp_path / "b", ("b", 2, (1,)))]
    whole = condensed(topkit.merge(runs, tmp_path / "whole"))

    def stop(folder: Path, name: str, table: pa.Table, *, run: str) -> Path:
        if folder.name == "haystacks":
            raise KeyboardInterrupt
        return write_part(folder, name, table, run=run)

    with monkeypatch.context() as patch:
        patch.setattr(joined_means_module, "write_part", stop)
        with pytest.raises(KeyboardInterrupt):
            topkit.merge(runs, tmp_path / "out")
    with pytest.raises(InputError):
        condensed(tmp_path / "out")
    for _ in range(2):
        out = topkit.merge(runs, tmp_path / "out")
        assert topkit.verify(out).faults == ()
        assert condensed(out) == whole


def test_other_means_in_the_folder_are_refused(tmp_path: Path) -> None:
    runs = [kept(tmp_path / "a", ("a", 1, (0,))), kept(tmp_path / "b", ("b", 2, (1,)))]
    out = topkit.merge(runs[0], tmp_path / "out")
    with pytest.raises(InputError, match=r"out holds other means \(curve/haystacks\)"):
        topkit.merge(runs, out)
    assert condensed(out)[0].equals(condensed(runs[0])[0])


def test_a_merge_is_merged_again_with_one_of_its_runs(tmp_path: Path) -> None:
    runs = [kept(tmp_path / "a", ("a", 1, (0,))), kept(tmp_path / "b", ("b", 2, (1,)))]
    both = topkit.merge(runs, tmp_path / "both")
    again = topkit.merge([both, runs[1]], tmp_path / "again")
    assert condensed(again)[0].to_pylist() == condensed(both)[0].to_pylist()


def test_nan_is_nans_equal(tmp_path: Path) -> None:
    def nan(table: pa.Table) -> pa.Table:
        place = table.column_names.index("nll")
        return table.set_column(place, "nll", pa.array([float("nan")] * len(table)))

    runs = [altered(kept(tmp_path / name, ("a", 1, (0,))), "haystacks", nan) for name in ("a", "b")]
    assert len(joined_means(runs)["curve/haystacks"]) == len(condensed_rows(runs[0]))


def condensed_rows(run: Path) -> list[dict[str, Any]]:
    return pq.read_table(run / "curve" / "haystacks" / "rows.parquet").to_pylist()
