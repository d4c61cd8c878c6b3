"""What is said of rows that come a table at a time is what all rows at once say."""

from __future__ import annotations

from collections import defaultdict
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from topkit.errors import InputError
from topkit.experiments.measure.measured import Measured
from topkit.experiments.measure.summary import interval, summarise
from topkit.experiments.runs.fidelity_rows import TABLES, table
from topkit.experiments.runs.parts import write_part

MEANS = ("own_recall", "kept", "mass", "mass_ratio", "output_error", "bytes_read")
RECALLS = {"recall", "recall_min"}
# Places of the worst row, in their order.
PLACES = ("sample", "layer", "head")


def made_rows(
    seed: int, *, samples=3, layers=2, heads=2, ties=False, nan=False, form="measure", named=False
):
    """Rows of three cells in the order of a run: one shares lists, one is trivial in part, one in whole."""
    g = np.random.default_rng(seed)
    made: list[dict[str, Any]] = []
    for sample in range(samples):
        for layer in range(layers):
            for indexer, budget, share, k in (
                ("sign()", "4", 0.0, 4),
                ("sign()", "8", 0.5, 8),
                ("shared(exact())", "99", 1.0, 99),
            ):
                for level in ("head", "group") if "shared" in indexer else ("head",):
                    for head in range(heads if level == "head" else 1):
                        for position in range(3 + sample):
                            row: dict[str, Any] = dict.fromkeys(TABLES[form].names)
                            for name in TABLES[form].names:
                                if row[name] is None:
                                    row[name] = float(g.integers(1, 4) if ties else g.random())
                            row |= {
                                "sample": sample, "layer": layer, "head": head, "indexer": indexer,
                                "budget": budget, "k": k, "level": level, "reference": level,
                                "trivial": bool(g.random() < share), "visible": float(10 + position),
                            }  # fmt: skip
                            row |= {"position": position} if form == "measure" else {"rows": 3}
                            if nan and g.random() < 0.4:
                                row |= dict.fromkeys(("own_recall", "output_error"))
                            made.append(row)
                            other = {**row, **dict.fromkeys(MEANS), "reference": "sign()"}
                            if named:
                                made.append(
                                    other | {n: float(g.random()) for n in RECALLS & row.keys()}
                                )
    return made


def slowly(rows: list[dict[str, Any]]) -> dict[tuple[str, str], dict[str, Any]]:
    """All rows of a cell at once, from the definitions."""
    cells, others = defaultdict(list), defaultdict(list)
    for row in rows:
        some = cells if row["reference"] == row["level"] else others
        some[row["indexer"], row["budget"]].append(row)
    return {cell: _slow(own, others[cell]) for cell, own in cells.items()}


def _slow(own: list[dict[str, Any]], others: list[dict[str, Any]]) -> dict[str, Any]:
    def counted(some):
        return [row for row in some if not row["trivial"]] or some

    def mean(some, name):
        values = [row[name] for row in some if row[name] is not None]
        return float(np.mean(values)) if values else None

    every = [row for row in own if row["level"] == "head"]
    rows = counted(every)
    shared = counted([row for row in own if row["level"] != "head"] or own)
    lowest = "recall_min" if "recall_min" in rows[0] else "recall"
    against = counted(others) or rows
    worst = min(against, key=lambda row: (row[lowest], *(row[name] for name in PLACES)))
    of_sample = defaultdict(list)
    for row in against:
        of_sample[row["sample"]].append(row["recall"])
    low, high = slow_interval(list(of_sample.values()))
    left = len(every) - len(rows)
    note = f"{left:,} of {len(every):,} rows left out: k covers all that they see" if left else ""
    return {
        **{name: mean(rows, name) for name in MEANS},
        "recall": mean(against, "recall"),
        "exact_recall": mean(rows, "recall"),
        "against": "sign()" if others else "the exact Top-k",
        "recall_p1": np.percentile([row[lowest] for row in against], 1),
        "low": low,
        "high": high,
        "worst": worst[lowest],
        "worst_row": {n: worst[n] for n in (*PLACES, "position") if n in worst},
        "rows": len(rows),
        "k": max(row["k"] for row in rows),
        "bytes_read_per_key": np.mean([row["bytes_read"] / row["visible"] for row in rows]),
        "index_bytes_per_key": np.mean([row["index_bytes"] / row["visible"] for row in rows]),
        "unit": shared[0]["level"],
        "unit_recall": mean(shared, "recall"),
        "unit_mass": mean(shared, "mass"),
        "note": "k covers the whole context" if all(row["trivial"] for row in every) else note,
        "top1": mean(rows, "top1"),
    }


def slow_interval(clusters: list[list[float]]):
    count, rows = len(clusters), [x for cluster in clusters for x in cluster]
    if count < 2:
        return None, None
    size, mean = len(rows) / count, np.mean(rows)
    off = [sum(x - mean for x in cluster) / size for cluster in clusters]
    half = stats.t.ppf(0.975, count - 1) * np.sqrt(sum(x**2 for x in off) / (count - 1) / count)
    return max(0.0, mean - half), min(1.0, mean + half)


def pieces(rows, form, cuts):
    whole = pa.Table.from_pylist(rows, TABLES[form])
    ends = [0, *sorted(cut % (len(rows) + 1) for cut in cuts), len(rows)]
    return [table(form, [whole.slice(a, b - a)]) for a, b in pairwise(ends)]


@settings(deadline=None, max_examples=25)
@given(
    st.integers(0, 10**6),
    st.lists(st.integers(0, 500), max_size=5),
    st.booleans(),
    st.booleans(),
    st.integers(1, 3),
    st.sampled_from(["measure", "reduced"]),
    st.booleans(),
)
def test_pieces_say_what_all_rows_say(seed, cuts, ties, nan, samples, form, named):
    rows = made_rows(seed, samples=samples, ties=ties, nan=nan, form=form, named=named)
    expected = slowly(rows)
    said = summarise(pieces(rows, form, cuts), ["top1"])
    assert [(row["indexer"], row["budget"]) for row in said] == [
        ("shared(exact())", "99"), ("sign()", "4"), ("sign()", "8"),
    ]  # fmt: skip
    for row in said:
        own = expected[row.pop("indexer"), row.pop("budget")]
        assert row.keys() == own.keys()
        for name, value in row.items():
            exact = value is None or isinstance(value, str | dict | int)
            assert value == (own[name] if exact else pytest.approx(own[name], rel=1e-12)), name


def test_the_worst_of_rows_alike_is_the_first_whatever_the_order_of_pieces():
    rows = [row | {"recall": 0.5} for row in made_rows(0)]
    cut = pieces(rows, "measure", range(0, len(rows), 7))
    for tables in (cut, cut[::-1]):
        (row,) = [row for row in summarise(tables) if row["budget"] == "4"]
        assert (row["worst"], row["recall_p1"]) == (0.5, 0.5)
        assert [row["worst_row"][name] for name in PLACES] == [0, 0, 0]


def test_a_column_without_a_value_has_no_mean():
    rows = [row | {"own_recall": None, "mass": float("nan")} for row in made_rows(1)]
    for row in summarise(pieces(rows, "measure", [9])):
        assert row["own_recall"] is row["mass"] is row["unit_mass"] is None


def test_a_key_is_no_metric():
    for name in ("indexer", "sample", "nope"):
        with pytest.raises(InputError, match=f"the rows have no metric '{name}'"):
            summarise(pieces(made_rows(0), "measure", []), [name])


def test_nothing_is_said_of_no_rows():
    assert summarise([]) == summarise([TABLES["measure"].empty_table()]) == []


def test_rows_of_a_folder_are_those_in_memory(tmp_path):
    """Read when they are wanted: until then only their names are known."""
    rows = made_rows(3)
    cut = pieces(rows, "measure", [40, 90])
    parts = [write_part(tmp_path, f"part-{n}", one) for n, one in enumerate(cut)]
    there, here = Measured("measure", parts), Measured("measure", cut)
    assert there.rows == here.rows == len(rows)
    assert there.summary() == here.summary()
    assert there.table.equals(here.table)
    for part in parts:
        part.unlink()
    assert there.table.num_rows == len(rows)
    with pytest.raises(InputError, match=r"cannot read .*part-0\.parquet"):
        there.summary()


def test_the_interval_of_shares_is_that_of_their_clusters():
    values, clusters = np.array([0.5, 1, np.nan, 0.25]), np.array([0, 0, 1, 2])
    assert interval(values, clusters) == pytest.approx(slow_interval([[0.5, 1], [0.25]]))
    assert interval(values[:3], clusters[:3]) == (None, None)
