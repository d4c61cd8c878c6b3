"""Sums of groups, added table by table, against a loop over rows."""

from __future__ import annotations

from collections import defaultdict
from itertools import pairwise

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from topkit.experiments.runs import group_sums
from topkit.experiments.runs.dictionaries import LABEL, encoded, in_order, plain
from topkit.experiments.runs.group_sums import GroupSums

SCHEMA = pa.schema(
    {"name": pa.string(), "flag": pa.bool_(), "x": pa.float64(), "n": pa.int64(), "k": pa.int64()}
)
ROWS = st.lists(
    st.fixed_dictionaries(
        {
            "name": st.sampled_from(["a", "b", "", "é", None]),
            "flag": st.sampled_from([True, False]),
            "x": st.none() | st.floats(-9, 9),
            "n": st.none() | st.integers(-9, 9),
            "k": st.integers(-9, 9),
        }
    ),
    max_size=30,
)
CUTS = st.lists(st.integers(0, 30), max_size=4)


def pieces(rows, cuts):
    """The rows as tables, each second with its strings as dictionaries."""
    whole = pa.Table.from_pylist(rows, SCHEMA)
    ends = [0, *sorted(min(cut, len(rows)) for cut in cuts), len(rows)]
    made = [whole.slice(a, b - a) for a, b in pairwise(ends)]
    return [encoded(table) if number % 2 else table for number, table in enumerate(made)]


@settings(deadline=None, max_examples=60)
@given(ROWS, CUTS, st.sampled_from([0, 4, 1 << 16]))
def test_sums_are_those_of_a_loop(rows, cuts, waiting):
    """Whether groups are joined as they come or at the end."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(group_sums, "_WAITING", waiting)
        sums = GroupSums(["name", "flag"], ["x", "n"], most=["k"])
        for table in pieces(rows, cuts):
            sums.add(table)
    groups = defaultdict(list)
    for row in rows:
        groups[row["name"], row["flag"]].append(row)
    made = {(row["name"], row["flag"]): row for row in sums.table().to_pylist()}
    means = {(row["name"], row["flag"]): row for row in sums.means("rows").to_pylist()}
    assert made.keys() == means.keys() == groups.keys()
    for key, own in groups.items():
        assert made[key]["count_all"] == means[key]["rows"] == len(own)
        assert made[key]["k_max"] == max(row["k"] for row in own)
        for name in ("x", "n"):
            values = [row[name] for row in own if row[name] is not None]
            assert made[key][f"{name}_count"] == len(values)
            mean = pytest.approx(sum(values) / len(values), abs=1e-12) if values else None
            assert means[key][name] == mean


def test_a_column_may_be_absent_from_some_tables_and_from_all():
    sums = GroupSums(["name"], ["x", "y", "z"])
    sums.add(pa.table({"name": ["a", "b"], "x": [1.0, 2.0]}))
    sums.add(pa.table({"name": ["a"], "x": [3.0], "y": [5]}))
    rows = sorted(sums.means("rows").to_pylist(), key=lambda row: row["name"])
    assert rows == [
        {"name": "a", "x": 2.0, "y": 5.0, "rows": 2},
        {"name": "b", "x": 2.0, "y": None, "rows": 1},
    ]


@settings(deadline=None)
@given(ROWS, CUTS)
def test_dictionaries_are_sorted_as_their_strings_are(rows, cuts):
    tables = [encoded(table) for table in pieces(rows, cuts)]
    names = ["name", "x"]
    whole = pa.concat_tables(tables)
    assert {f.name for f in whole.schema if f.type == LABEL} == {"name"}
    assert plain(whole).schema.equals(SCHEMA)
    ours = plain(in_order(whole, names))
    assert ours.equals(plain(whole).sort_by([(name, "ascending") for name in names]))
