"""Where two runs of one identity's cells part, and what is apart before: rounding, or more.

    python tools/partings.py RUN_BEFORE RUN_AFTER

Two runs with a fidelity row for each query (`evaluate --observe rows`). Sums in another order move scores by
roundings; where two keys are equal to within these, another one is chosen, or a tie is judged otherwise,
and all that follows in that cell is of another context. So each cell on each question is followed from its
first query and layer to its last: of those that never part the worst differences are printed, and of the
others the first list that is apart. A parting that no tie explains is a fault; several heads, or most cells,
that part at one place are another algorithm.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import pyarrow as pa
from same_numbers import KEYS, joined_rows, named, numbers, read

from topkit.errors import InputError

# One cell on one question.
CELL = ("task", "length", "sample", "question", "indexer", "budget")
# What float32 rounds away in these, and what the choice of another key changes.
PARTED = {"recall": 0.0, "mass": 1e-5, "output_error": 1e-4}
SHOWN = ("mass", "recall", "output_error", "score_regret", "entropy", "mass_estimate")


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    given = parser.parse_args(words)
    one, other = (read(run, "fidelity", {}) for run in (given.before, given.after))
    if one is None or other is None or one["position"].null_count:
        raise InputError("expected two runs of `topkit evaluate --observe rows`")
    keys = [key for key in KEYS if key in one.column_names and key in other.column_names]
    places, others = joined_rows(one, other, keys)
    one, other = one.take(pa.array(places)), other.take(pa.array(others))
    apart = {n: np.nan_to_num(np.abs(numbers(one[n]) - numbers(other[n]))) for n in SHOWN}
    parted = np.any([apart[name] > most for name, most in PARTED.items()], axis=0)
    cells = _cells(one)
    parts = np.unique(cells[parted])
    calm = ~np.isin(cells, parts)
    print(f"{len(places):,} rows of {len(np.unique(cells)):,} cells on a question")
    worst = ", ".join(f"{name} {x[calm].max(initial=0):.2g}" for name, x in apart.items())
    print(f"{len(np.unique(cells[calm])):,} never part; the worst there: {worst}")
    order = numbers(one["position"]) * 1e4 + numbers(one["layer"])
    for cell in parts:
        rows = np.flatnonzero((cells == cell) & parted)
        first = rows[order[rows] == order[rows].min()]
        said = ", ".join(f"{name} {apart[name][first[0]]:.2g}" for name in PARTED)
        print(
            f"{named(one, [*CELL, 'steps', 'position', 'layer', 'level', 'head'], int(first[0]))}"
        )
        print(f"    {len(first)} of the lists there part: {said}")
    return 0


def _cells(table: pa.Table) -> np.ndarray[Any, Any]:
    """A number for each row's cell and question."""
    ids = np.zeros(table.num_rows, dtype=np.int64)
    for name in CELL:
        values = np.array([str(x) for x in table[name].to_pylist()], dtype=object)
        known, codes = np.unique(values, return_inverse=True)
        ids = np.unique(ids * len(known) + codes, return_inverse=True)[1]
    return ids


if __name__ == "__main__":
    try:
        sys.exit(main())
    except InputError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
