"""Several runs of one identity as one, each row once."""

# pyright: strict, reportMissingTypeStubs=false, reportUnknownMemberType=false
# pyright: reportUnknownArgumentType=false, reportUnknownParameterType=false
# pyright: reportUnknownVariableType=false
# (pyarrow comes without types.)
from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute

from topkit.errors import InputError
from topkit.experiments.runs.cell_parts import cells_of
from topkit.experiments.runs.folder import require_intact, writer
from topkit.experiments.runs.identity import KINDS
from topkit.experiments.runs.parts import read_table

pc: Any = pyarrow.compute
Triple = tuple[str, str, str]


@dataclass(frozen=True)
class Source:
    """A part of one of the runs: the cells (job, indexer, budget) of it that no part before has.

    tables: those that have a file of this name; the first one says which cells are done.
    """

    run: Path
    name: str
    tables: tuple[str, ...]
    cells: tuple[Triple, ...]
    whole: bool

    def rows(self, table: str) -> pa.Table:
        """The rows of its cells."""
        rows = read_table(self.run / table, names={self.name})
        return rows if self.whole else pa.concat_tables(_of_cell(rows, cell) for cell in self.cells)


def sources(runs: Sequence[Path]) -> list[Source]:
    """The parts of all runs, in their order, each cell once.

    Raises: InputError for runs of other identities, a part that is not as its run wrote it, runs whose
    rows are gone, and two parts that hold different rows of one cell.
    """
    described = {run: require_intact(run) for run in runs}
    require_alike(described)
    first: dict[Triple, Path] = {}
    every = list[Source]()
    for run in described:
        every += _of_run(run, first)
    return every


def require_alike(described: Mapping[Path, Mapping[str, Any]]) -> None:
    """Require what several run.json say to be of one identity.

    Raises: InputError naming two runs, and what differs.
    """
    (where, one), *others = described.items()
    for run, other in described.items():
        if "id" not in other:
            raise InputError(
                f"{run} was written by {writer(other)} before rows had digests: it cannot be joined"
            )
    for run, other in others:
        mine, its = one["identity"], other["identity"]
        apart = [name for name in {**mine, **its} if mine.get(name) != its.get(name)]
        if apart:
            raise InputError(
                f"{run} and {where} are different runs ({', '.join(apart)} differ): their rows are not mixed"
            )
        for name in one["contents"].keys() & other["contents"].keys():
            for kind, words in KINDS.items():
                if one["contents"][name].get(kind) != other["contents"][name].get(kind):
                    raise InputError(f"{name[:200]} is not the same in {run} and {where}: {words}")


def _of_run(run: Path, first: dict[Triple, Path]) -> Iterator[Source]:
    leading = "accuracy" if (run / "accuracy").is_dir() else "fidelity"
    parts = sorted((run / leading).glob("*.parquet"))
    if not parts and any((run / "curve").rglob("*.parquet")):
        raise InputError(
            f"{run} has its means alone, under {run / 'curve'}: rows are not joined with them; `topkit merge` joins runs that "
            "all have means alone"
        )
    for path in parts:
        # Accuracy is written last: fidelity without it is of a job that was not finished.
        there = [name for name in ("fidelity",) if (run / name / path.name).exists()]
        tables = tuple(dict.fromkeys((leading, *there)))
        cells = cells_of(path)
        if cells is None:
            raise InputError(f"cannot read {path}; delete it and run again")
        new = tuple(cell for cell in cells if cell not in first)
        for cell in cells:
            if cell in first:
                _require_equal(first[cell], path, tables, cell)
        first |= dict.fromkeys(new, path)
        if new:
            yield Source(run, path.name, tables, new, len(new) == len(cells))


def _require_equal(one: Path, other: Path, tables: Sequence[str], cell: Triple) -> None:
    """Raises: InputError where two parts of an accuracy table differ in a cell, or those beside them do."""
    for table in tables:
        rows: list[pa.Table] = []
        for path in (one, other):
            folder = path.parent.parent / table
            there = (folder / path.name).exists()
            rows.append(
                _of_cell(read_table(folder, names={path.name}), cell) if there else pa.table({})
            )
        if not _same(*rows):
            raise InputError(
                f"{other} and {one} hold different rows of {cell[1]}{f' at {cell[2]}' if cell[2] else ''} "
                f"({table}): one identity, and not the same numbers; keep one of the two"
            )


def _of_cell(rows: pa.Table, cell: Triple) -> pa.Table:
    _, indexer, budget = cell
    return rows.filter((pc.field("indexer") == indexer) & (pc.field("budget") == budget))


def _same(one: pa.Table, other: pa.Table) -> bool:
    """Whether two tables have the same rows in the same order; NaN is NaN's equal."""
    return _without_nan(one).equals(_without_nan(other))


def _without_nan(table: pa.Table) -> pa.Table:
    table = table.replace_schema_metadata().combine_chunks()
    for place, field in enumerate(table.schema):
        if pa.types.is_floating(field.type):
            column = table.column(place)
            plain = pc.if_else(pc.is_nan(column), pa.scalar(None, field.type), column)
            table = table.set_column(place, field, plain)
    return table
