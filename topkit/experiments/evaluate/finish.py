"""What stands beside the rows of a run that has come to its end."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa

from topkit.experiments.evaluate.accuracy_rows import in_order, write_predictions
from topkit.experiments.evaluate.condensed import keep_condensed
from topkit.experiments.runs.parts import read_table


def finish(out: Path) -> pa.Table:
    """Write RUN/predictions.jsonl and RUN/curve; returns the accuracy rows."""
    table = in_order(read_table(out / "accuracy"))
    write_predictions(table, out / "predictions.jsonl")
    keep_condensed(out)
    return table
