"""Benchmarks at toy size: that they run and say what they must. No test judges a time."""

import csv

import pytest

from topkit.errors import InputError
from topkit.experiments.bench.cpu import BENCHES, COLUMNS, run_benches, write_rows


@pytest.mark.parametrize("name", BENCHES)
def test_a_benchmark_says_what_was_compared(name, tmp_path):
    seen = []
    rows = run_benches([name], tiny=True, report=seen.append)
    assert rows
    assert rows == seen
    for row in rows:
        assert tuple(row) == COLUMNS
        assert row["bench"] == name
        assert float(row["low"]) <= float(row["median"]) <= float(row["high"])
        if row["against"]:
            assert float(row["ratio_low"]) <= float(row["ratio"]) <= float(row["ratio_high"])
        for fact in ("device", "cores", "torch", "topkit", "python", "date"):
            assert row[fact]
    write_rows(tmp_path / "deep" / "rows.csv", rows)
    with (tmp_path / "deep" / "rows.csv").open() as file:
        assert [row["what"] for row in csv.DictReader(file)] == [row["what"] for row in rows]


def test_an_unknown_benchmark_suggests_the_nearest():
    with pytest.raises(InputError, match="measure"):
        run_benches(["mesure"])
