"""Runs kept by their means alone: joined they are what the means of all rows are."""

from __future__ import annotations

import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import topkit
from topkit.errors import InputError
from topkit.experiments.evaluate.condensed import condensed, keep_condensed
from topkit.experiments.evaluate.haystack_means import HAYSTACK, HEAD
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


def law_beside(run: Path, law: bytes) -> Path:
    rows = pq.read_table(run / "curve" / "haystacks").select(HAYSTACK)
    table = rows.append_column("ws", pa.array([0.5] * len(rows)))
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
        topkit.merge(runs, tmp_path / "other")


def test_means_and_rows_are_not_mixed(tmp_path: Path) -> None:
    (tmp_path / "rows").mkdir()
    part(tmp_path / "rows", "b", 2, (1,))
    with pytest.raises(
        InputError, match=r"means alone.*others have rows: join runs that are kept alike"
    ):
        topkit.merge([kept(tmp_path / "a", ("a", 1, (0,))), tmp_path / "rows"], tmp_path / "out")
