"""The condensed tables of a run: made from its rows, kept under RUN/curve, read again from there.

A large run can be kept by them alone. Beside its rows they say of which rows they are, and are made anew
where these have changed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from topkit.errors import InputError, NoRows
from topkit.experiments.evaluate.haystack_means import (
    ACCURACY,
    FIDELITY,
    METRICS,
    SCORES,
    UNITS,
    HaystackMeans,
)
from topkit.experiments.runs import manifest, run_file
from topkit.experiments.runs.cell_parts import write_rows
from topkit.experiments.runs.fidelity_rows import LABELS, TABLES
from topkit.experiments.runs.folder import require_intact
from topkit.experiments.runs.parts import batches, digest, paths_of, read_table
from topkit.experiments.runs.union import sources

# The folders of the two tables.
CONDENSED = ("curve/haystacks", "curve/heads")
# Changes with what is made of the same rows.
FORM = 2
Tables = tuple[pa.Table, pa.Table]


def condensed(run: Path, *others: Path) -> Tables:
    """The tables of haystacks and of heads: of the rows where there are any, else as they stand under RUN/curve.

    Of several runs of one identity, as shards leave them: of the rows of all. Nothing is written.
    Raises: InputError when the folder holds neither, naming a part that is not as the run wrote it, and for
    runs that cannot be joined.
    """
    if others:
        return _joined((run, *others))
    described = require_intact(run)
    return _kept(run, _origin(run, described)) or _of_rows(run)


def keep_condensed(run: Path) -> Tables:
    """The same tables; those of rows are written under RUN/curve."""
    described = require_intact(run)
    origin = _origin(run, described)
    if tables := _kept(run, origin):
        return tables
    tables = _of_rows(run)
    if origin:
        for name, table in zip(CONDENSED, tables, strict=True):
            named = table.replace_schema_metadata({"rows": origin})
            write_rows(run, described["id"], name, "rows", named)
    return tables


def _origin(run: Path, described: Mapping[str, Any]) -> str:
    """A name for the rows of a run and what is made of them; none for a run whose rows have no digests."""
    if "id" not in described or not any((run / "accuracy").glob("*.parquet")):
        return ""
    parts = {
        name: sorted(
            entry
            for entry in manifest.entries(run / name, described["id"])
            if (run / name / entry[0]).exists()
        )
        for name in ("accuracy", "fidelity")
    }
    return digest([FORM, SCORES, METRICS, UNITS, parts])


def _kept(run: Path, origin: str) -> Tables | None:
    """The tables as they stand under RUN/curve, if they are of these rows; or if there are no rows."""
    haystacks, heads = (run / name for name in CONDENSED)
    if not any((run / "accuracy").glob("*.parquet")):
        if not haystacks.is_dir():
            if (run / run_file.NAME).exists():
                raise NoRows(f"{run} holds no rows yet; run the same command to its end")
            raise InputError(
                f"{run} holds no run: expected {run / 'accuracy'} or {haystacks.parent}"
            )
        return read_table(haystacks), read_table(heads)
    kept = [folder / "rows.parquet" for folder in (haystacks, heads)]
    if not origin or not all(map(Path.exists, kept)):
        return None
    said = [(pq.read_schema(path).metadata or {}).get(b"rows") for path in kept]
    if said != [origin.encode()] * 2:
        return None
    return read_table(haystacks), read_table(heads)


def _of_rows(run: Path) -> Tables:
    """Of rows of fidelity those that have accuracy beside them.

    Fidelity is written first: what has no accuracy beside it is of a job that was not finished; and none is
    there where full attention ran alone, or nothing was observed.
    """
    means, accuracy = HaystackMeans(), paths_of(run / "accuracy")
    for rows in batches(accuracy, ACCURACY):
        means.add_accuracy(rows)
    beside = [run / "fidelity" / path.name for path in accuracy]
    beside = [path for path in beside if path.exists()]
    if not beside:
        means.add_fidelity(TABLES["evaluate"].empty_table())
    for rows in batches(beside, FIDELITY, LABELS):
        means.add_fidelity(rows)
    return means.by_haystack(), means.by_head()


def _joined(runs: Sequence[Path]) -> Tables:
    parts, means = sources(runs), HaystackMeans()
    if not any("accuracy" in part.tables for part in parts):
        raise InputError(
            f"{runs[0]} and the others hold no answers: a report is of `evaluate` or `study`"
        )
    means.add_fidelity(TABLES["evaluate"].empty_table())
    for part in parts:
        if "accuracy" in part.tables:
            means.add_accuracy(part.rows("accuracy"))
        if "fidelity" in part.tables:
            means.add_fidelity(part.rows("fidelity"))
    return means.by_haystack(), means.by_head()
