"""Tables as data frames: the same values, nulls and names; dictionaries become categoricals."""

from __future__ import annotations

import sys
from typing import Any

import pyarrow as pa
import pytest
import torch

import topkit
from topkit.errors import InputError, MissingExtra

TABLE = pa.table(
    {
        "indexer": pa.array(["sign()", "exact()", None]).dictionary_encode(),
        "k": pa.array([16, None, 2]),
        "recall": pa.array([0.5, None, 1.0]),
        "whole": [True, False, True],
    }
)


@pytest.mark.parametrize("to", ["to_pandas", "to_polars"])
def test_values_names_and_nulls_are_kept(to: str):
    pytest.importorskip(to.removeprefix("to_"))
    frame = getattr(topkit, to)(TABLE)
    assert list(frame.columns) == TABLE.column_names
    assert "categ" in str(frame["indexer"].dtype).lower()
    back = pa.Table.from_pandas(frame) if to == "to_pandas" else frame.to_arrow()
    for name in TABLE.column_names:
        assert back[name].to_pylist() == TABLE[name].to_pylist()


def test_a_measurement_is_its_table():
    pytest.importorskip("polars")
    capture = topkit.Capture.from_tensors(torch.randn(1, 2, 3, 8), torch.randn(1, 2, 9, 8))
    measured = topkit.measure(capture, ["sign"], 4)
    assert topkit.to_polars(measured).height == measured.table.num_rows


@pytest.mark.parametrize("package", ["pandas", "polars"])
def test_what_is_not_installed_is_named(package: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtra, match=rf"needs {package}; pip install 'topkit\[frames\]'"):
        getattr(topkit, f"to_{package}")(TABLE)


@pytest.mark.parametrize("wrong", [[{"a": 1}], "runs/mine", None])
def test_what_is_no_table_is_refused(wrong: Any):
    pytest.importorskip("pandas")
    with pytest.raises(InputError, match=r"expected a pyarrow\.Table"):
        topkit.to_pandas(wrong)
