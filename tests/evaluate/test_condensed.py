"""The condensed tables: kept beside the rows that they are of, and made anew where these have changed."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from topkit.errors import InputError
from topkit.experiments.evaluate import condensed as module
from topkit.experiments.evaluate.condensed import CONDENSED, condensed, keep_condensed
from topkit.experiments.runs import parts as parts_module
from topkit.experiments.runs.parts import write_part
from topkit.experiments.runs.run_file import describe
from two_tables import part


def test_tables_are_those_of_the_definitions(tmp_path, monkeypatch):
    """Read in batches of seven rows, which cut through haystacks and heads."""
    for number in range(3):
        part(tmp_path, f"part-{number}", number, haystacks=(number, number + 5))
    monkeypatch.setattr(parts_module, "BATCH", 7)
    haystacks, heads = condensed(tmp_path)
    accuracy = pq.read_table(tmp_path / "accuracy").to_pylist()
    rows = pq.read_table(tmp_path / "fidelity").filter(pc.field("steps") == "answer").to_pylist()
    assert haystacks.num_rows == 3 * 6
    for row in haystacks.to_pylist():
        own, seen = (
            [r for r in some if all(r[n] == row[n] for n in ("haystack", "indexer", "budget"))]
            for some in (accuracy, rows)
        )
        assert row["score"] == pytest.approx(np.mean([r["score"] for r in own]))
        assert (row["questions"], row["parts"], row["tokens"]) == (2, 1.5, 60)
        of_heads = [r for r in seen if r["level"] == "head"]
        open_ = [r for r in of_heads if not r["trivial"]]
        counted = open_ or of_heads
        assert row["recall"] == (mean(counted, "recall"))
        assert row["rows"] == (len(counted) or None)
        assert row["trivial_rows"] == (len(of_heads) - len(open_) or None)
        assert row["trivial"] == ((not open_) if of_heads else None)
        assert row["unit_mass"] == mean([r for r in seen if r["level"] == "group"], "mass")
    open_ = [r for r in rows if r["level"] == "head" and not r["trivial"]]
    for row in heads.to_pylist():
        own = [r for r in open_ if all(r[n] == row[n] for n in ("head", "indexer"))]
        assert (row["recall"], row["rows"]) == (mean(own, "recall"), len(own))
    assert {(r["indexer"], r["head"]) for r in open_} == {
        (r["indexer"], r["head"]) for r in heads.to_pylist()
    }


def mean(rows, name):
    return pytest.approx(float(np.mean([r[name] for r in rows]))) if rows else None


def marked(run, value):
    """Write other numbers under RUN/curve, of the origin that is said there."""
    for name in CONDENSED:
        table = pq.read_table(run / name)
        column = table.schema.get_field_index("recall")
        other = pa.array([value] * len(table), pa.float64())
        changed = table.set_column(column, "recall", other)
        write_part(run / name, "rows", changed, run=describe(run, {}))


def recalls(tables):
    return {x for table in tables for x in table["recall"].to_pylist()}


def test_kept_tables_are_read_until_the_rows_change(tmp_path, monkeypatch):
    part(tmp_path, "one", 0)
    tables = keep_condensed(tmp_path)
    for _ in range(2):
        for ours, theirs in zip(keep_condensed(tmp_path), tables, strict=True):
            assert ours.equals(theirs)
    marked(tmp_path, 9.0)
    assert recalls(condensed(tmp_path)) == recalls(keep_condensed(tmp_path)) == {9.0}
    with monkeypatch.context() as patch:  # another topkit makes something else of them
        patch.setattr(module, "FORM", module.FORM + 1)
        assert 9.0 not in recalls(condensed(tmp_path))
    part(tmp_path, "two", 1, haystacks=(1,))
    assert 9.0 not in recalls(condensed(tmp_path))
    assert condensed(tmp_path)[0].num_rows == 6
    keep_condensed(tmp_path)
    marked(tmp_path, 8.0)
    (tmp_path / "fidelity" / "two.parquet").unlink()
    with pytest.raises(InputError, match=r"two\.parquet is gone"):
        condensed(tmp_path)


def test_kept_tables_without_an_origin_are_made_anew(tmp_path):
    """As earlier versions left them."""
    part(tmp_path, "one", 0)
    tables = keep_condensed(tmp_path)
    for name in CONDENSED:
        bare = pq.read_table(tmp_path / name).replace_schema_metadata()
        write_part(tmp_path / name, "rows", bare.slice(0, 1), run=describe(tmp_path, {}))
    for ours, theirs in zip(condensed(tmp_path), tables, strict=True):
        assert ours.equals(theirs)
