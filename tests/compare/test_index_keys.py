"""tools/index_keys.py compares index keys of fewer bits: on a tiny model, by the numbers that it writes."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest


@pytest.mark.slow
def test_fewer_bits_lose_more_of_a_model_s_own_index(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "tools")
    tool: Any = importlib.import_module("index_keys")
    every = list(tool.rows(tool.tiny("deepseek_v32", tmp_path, sequences=5, length=160, k=16)))
    assert [row["index keys"] for row in every] == [x.replace(",", ", ") for x in tool.DTYPES]
    recall = {row["index keys"]: row["recall"] for row in every}
    assert 0.9 < recall["fp8"] < 1 and recall["mxfp4"] < recall["nvfp4"] < recall["fp8"]
    assert all(row["sequences"] == 5 and row["rows"] == 5 * 4 * 16 for row in every)
    table = list(tool.printed(every))
    assert len(table) == 2 + len(every) and all(line.count("|") == 8 for line in table)
