"""Whether two runs hold the same numbers: accuracy exactly, fidelity to a millionth.

    python tools/same_numbers.py RUN_BEFORE RUN_AFTER [--rename OLD=NEW]... [--without COLUMN]...

Runs of `study`, `evaluate` or `measure`; rows are joined on what names them, columns on their names, and
integers, floats and booleans are numbers alike. NLL and KL, sums over logits, are compared as fidelity is. A
number above one may differ by a millionth of itself. Exit 1 where a row or a number differs.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from topkit.errors import InputError
from topkit.indexers.spec import parse

TABLES = ("accuracy", "fidelity")
# The columns that name a row, as far as both tables have them.
KEYS = (
    "task", "wording", "family", "sparse_from", "length", "sample", "haystack", "question", "call",
    "row", "steps", "layer", "level", "head", "position", "indexer", "budget", "k", "reference",
)  # fmt: skip
NEARLY = {"accuracy": {"nll", "kl"}}
TOLERANCE = 1e-6


@dataclass(frozen=True)
class Difference:
    """One column of one table: how many rows differ by more than they may, and the worst of all."""

    table: str
    column: str
    rows: int
    differing: int
    worst: float | None = None
    where: str = ""


def read(folder: Path, table: str, rename: dict[str, str]) -> pa.Table | None:
    """All parts of a table of a run as one, None without any.

    Raises: InputError for a file that is no Parquet.
    """
    parts = []
    for path in sorted((folder / table).glob("*.parquet")):
        try:
            parts.append(pq.read_table(path).replace_schema_metadata())
        except (pa.ArrowException, OSError) as error:
            raise InputError(f"cannot read {path}: {error}") from error
    if not parts:
        return None
    whole = pa.concat_tables(parts, promote_options="permissive")
    return whole.rename_columns([rename.get(name, name) for name in whole.column_names])


def compare(name: str, before: pa.Table, after: pa.Table, without: set[str]) -> list[Difference]:
    """A line a column that both have, and one for rows that only one has.

    Raises: InputError where several rows have one name.
    """
    keys = [key for key in KEYS if key in before.column_names and key in after.column_names]
    places, others = joined_rows(before, after, keys)
    missing = before.num_rows + after.num_rows - 2 * len(places)
    lone = np.setdiff1d(np.arange(before.num_rows), places)
    example = named(before, keys, int(lone[0])) if len(lone) else ""
    if missing and not example:
        example = named(after, keys, int(np.setdiff1d(np.arange(after.num_rows), others)[0]))
    found = [Difference(name, "rows of one alone", len(places), missing, None, example)]
    shared = [n for n in before.column_names if n in after.column_names and n not in keys]
    for column in [n for n in shared if n not in without]:
        exact = name == "accuracy" and column not in NEARLY[name]
        one, other = before[column].take(pa.array(places)), after[column].take(pa.array(others))
        wrong, distance = _differing(one, other, exact)
        worst = int(np.argmax(distance)) if len(distance) else 0
        apart = bool(len(distance)) and distance[worst] > 0
        where = named(before, keys, int(places[worst])) if apart else ""
        size = float(distance[worst]) if apart else 0.0
        found.append(Difference(name, column, len(places), int(wrong.sum()), size, where))
    return found


def joined_rows(
    before: pa.Table, after: pa.Table, keys: list[str]
) -> tuple[np.ndarray, np.ndarray]:
    """The rows of both that have one name, in one order."""
    ids = np.zeros(before.num_rows + after.num_rows, dtype=np.int64)
    for key in keys:
        texts = _texts(before[key], key) + _texts(after[key], key)
        values, codes = np.unique(np.array(texts, dtype=object), return_inverse=True)
        ids = np.unique(ids * len(values) + codes, return_inverse=True)[1]
    ours, theirs = ids[: before.num_rows], ids[before.num_rows :]
    for which, own in (("first", ours), ("second", theirs)):
        if len(np.unique(own)) < len(own):
            values, counts = np.unique(own, return_counts=True)
            table = before if which == "first" else after
            row = int(np.flatnonzero(own == values[counts > 1][0])[0])
            raise InputError(
                f"the {which} run has several rows of one name, as {named(table, keys, row)}; rename a "
                "column that tells them apart (--rename OLD=NEW)"
            )
    _, one, other = np.intersect1d(ours, theirs, assume_unique=True, return_indices=True)
    return one, other


def _texts(column: pa.ChunkedArray, key: str) -> list[str]:
    """Values as text that does not depend on their type: 3 and 3.0 are one, specs as they parse."""
    values = column.to_pylist()
    texts = {value: _text(value, key) for value in set(values)}
    return [texts[value] for value in values]


def _text(value: Any, key: str) -> str:
    if isinstance(value, (bool, int, float)):
        return f"{float(value):.17g}"
    if key != "indexer" or value is None:
        return str(value)
    try:
        return repr(parse(value))
    except InputError:  # of a package that is not here, or of another version
        return str(value)


def _differing(
    one: pa.ChunkedArray, other: pa.ChunkedArray, exact: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Whether each row differs by more than it may, and by how much (infinitely, where one is missing)."""
    if not (_is_number(one.type) and _is_number(other.type)):
        pairs = zip(one.to_pylist(), other.to_pylist(), strict=True)
        wrong = np.array([a != b for a, b in pairs], dtype=bool)
        return wrong, np.where(wrong, np.inf, 0.0)
    a, b = numbers(one), numbers(other)
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    with np.errstate(invalid="ignore"):
        distance = np.where(same, 0.0, np.nan_to_num(np.abs(a - b), nan=np.inf))
        size = np.maximum(1.0, np.nan_to_num(np.maximum(np.abs(a), np.abs(b)), nan=1.0))
    return ~same if exact else distance > TOLERANCE * size, distance


def _is_number(kind: pa.DataType) -> bool:
    plain = (pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean, pa.types.is_null)
    return any(is_of(kind) for is_of in plain)


def numbers(column: pa.ChunkedArray) -> np.ndarray:
    """Floats, NaN where there is none."""
    if pa.types.is_boolean(column.type):
        column = column.cast(pa.int8())
    return np.array(column.cast(pa.float64()).to_numpy(zero_copy_only=False), dtype=np.float64)


def named(table: pa.Table, keys: list[str], row: int) -> str:
    return ", ".join(f"{key}={table[key][row].as_py()}" for key in keys)


def show(found: list[Difference]) -> None:
    width = max(len(f"{one.table} {one.column}") for one in found)
    for one in found:
        worst = "" if one.worst is None else f", worst {one.worst:.3g}"
        said = f"{one.differing:,} of {one.rows:,} rows differ" if one.worst is not None else (
            f"{one.differing:,} beside {one.rows:,} of both"
        )  # fmt: skip
        print(f"{f'{one.table} {one.column}':{width}}  {said}{worst}  {one.where}".rstrip())


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("--rename", action="append", default=[], metavar="OLD=NEW")
    parser.add_argument("--without", action="append", default=[], metavar="COLUMN")
    given = parser.parse_args(words)
    rename = dict(pair.partition("=")[::2] for pair in given.rename)
    found: list[Difference] = []
    for name in TABLES:
        before, after = read(given.before, name, rename), read(given.after, name, {})
        if before is None and after is None:
            continue
        if before is None or after is None:
            lacking = given.before if before is None else given.after
            raise InputError(f"{lacking} has no parts in {name}/, and the other run has")
        found += compare(name, before, after, set(given.without))
        alone = sorted({*before.column_names} ^ {*after.column_names})
        if alone:
            print(f"{name}: columns of one run alone, not compared: {', '.join(alone)}")
        if given.without:
            print(f"{name}: left out: {', '.join(given.without)}")
    if not found:
        raise InputError(f"{given.before} and {given.after} hold no accuracy/ and no fidelity/")
    show(found)
    differing = [one for one in found if one.differing]
    print("the same numbers" if not differing else f"{len(differing)} columns differ")
    return 1 if differing else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except InputError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
