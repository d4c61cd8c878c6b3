"""tools/same_numbers.py: two runs are joined by what names their rows, and compared number by number."""

from __future__ import annotations

import importlib
import math
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from topkit.errors import InputError

ROOT = Path(__file__).parents[2]


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(ROOT / "tools")
    return importlib.import_module("same_numbers")


def accuracy(**changed: Any) -> dict[str, list[Any]]:
    return {
        "task": ["niah"] * 3, "indexer": ["quantized(dtype='int4')", "sign()", None],
        "budget": ["1%", "1%", None], "k": [10, 10, None], "haystack": [0, 0, 0],
        "exact_match": [1.0, 0.0, 1.0], "said": ["a", "b", "c"], "kl": [0.25, 0.5, None], **changed,
    }  # fmt: skip


def fidelity(**changed: Any) -> dict[str, list[Any]]:
    return {
        "indexer": ["sign()", "sign()"], "k": [10, 10], "head": [0, 1], "recall": [0.5, 0.75],
        "support": [2000.0, 3.0], "mass_estimate": [math.nan, math.nan], "trivial": [True, False],
        **changed,
    }  # fmt: skip


def write(folder: Path, **tables: dict[str, list[Any]]) -> Path:
    """A run whose tables have a part a row: in no order, as parts are."""
    for name, columns in tables.items():
        (folder / name).mkdir(parents=True)
        table = pa.table(columns)
        for row in range(table.num_rows):
            pq.write_table(table.slice(row, 1), folder / name / f"{9 - row}.parquet")
    return folder


@pytest.fixture
def before(tmp_path: Path) -> Path:
    return write(tmp_path / "before", accuracy=accuracy(), fidelity=fidelity())


def outcome(tool: Any, before: Path, after: Path, *words: str) -> int:
    return tool.main([str(before), str(after), *words])


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"recall": [0.5 + 5e-7, 0.75]},
        {"support": [2000.0015, 3.0]},  # a millionth of itself
        {"mass_estimate": [None, math.nan]},
        {"trivial": [1, 0], "k": [10.0, 10.0], "head": [0.0, 1.0]},
        {"indexer": ["sign", "sign()"]},  # one recipe
        {"added": [1, 2]},
    ],
)
def test_what_is_the_same(tool: Any, before: Path, tmp_path: Path, changed: dict) -> None:
    after = write(tmp_path / "after", accuracy=accuracy(), fidelity=fidelity(**changed))
    assert outcome(tool, before, after) == 0


@pytest.mark.parametrize(
    ("table", "changed", "column", "differing"),
    [
        ("fidelity", {"recall": [0.5 + 3e-6, 0.75]}, "recall", 1),
        ("fidelity", {"support": [2000.0, 3.0 + 1e-5]}, "support", 1),
        ("fidelity", {"mass_estimate": [0.5, math.nan]}, "mass_estimate", 1),
        ("fidelity", {"recall": [math.inf, 0.75]}, "recall", 1),
        ("fidelity", {"trivial": [False, False]}, "trivial", 1),
        ("fidelity", {"head": [0, 2]}, "rows of one alone", 2),
        ("accuracy", {"exact_match": [1.0, 1e-9, 1.0]}, "exact_match", 1),
        ("accuracy", {"said": ["a", "b", "d"]}, "said", 1),
        ("accuracy", {"kl": [0.25, 0.5001, None]}, "kl", 1),
        ("accuracy", {"kl": [0.25, 0.5, 0.0]}, "kl", 1),
    ],
)
def test_what_differs_is_named(
    tool: Any,
    before: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    table: str,
    changed: dict[str, Any],
    column: str,
    differing: int,
) -> None:
    tables = {"accuracy": accuracy(), "fidelity": fidelity()}
    made = {"accuracy": accuracy, "fidelity": fidelity}[table]
    after = write(tmp_path / "after", **tables | {table: made(**changed)})
    assert outcome(tool, before, after) == 1
    lines = capsys.readouterr().out.splitlines()
    (line,) = [line for line in lines if line.startswith(f"{table} {column} ")]
    assert f"  {differing} " in line and "indexer=" in line
    assert lines[-1] == "1 columns differ"
    if differing == 1:
        assert outcome(tool, before, after, "--without", column) == 0


def test_a_tiny_difference_of_kl_is_none(tool: Any, before: Path, tmp_path: Path) -> None:
    close = accuracy(kl=[0.25, 0.5 + 1e-8, None])
    after = write(tmp_path / "after", accuracy=close, fidelity=fidelity())
    assert outcome(tool, before, after) == 0


def test_a_column_that_was_renamed_is_compared(tool: Any, tmp_path: Path) -> None:
    old, new = fidelity(), fidelity(recall=[0.5, 0.9])
    new["overlap"] = new.pop("recall")
    before, after = (write(tmp_path / n, fidelity=x) for n, x in (("a", old), ("b", new)))
    assert outcome(tool, before, after) == 0
    assert outcome(tool, before, after, "--rename", "recall=overlap") == 1


def test_what_cannot_be_compared_is_refused(tool: Any, before: Path, tmp_path: Path) -> None:
    twice = write(tmp_path / "twice", accuracy=accuracy(), fidelity=fidelity(head=[0, 0]))
    with pytest.raises(InputError, match=r"the second run has several rows of one name, as head=0"):
        outcome(tool, before, twice)
    with pytest.raises(InputError, match="has no parts in accuracy/"):
        outcome(tool, before, write(tmp_path / "half", fidelity=fidelity()))
    with pytest.raises(InputError, match="hold no accuracy/ and no fidelity/"):
        outcome(tool, tmp_path / "none", tmp_path / "nothing")
