"""What is said of cells whose k covers all that is visible, so that nothing is to choose."""

# pyright: strict
from __future__ import annotations

import numpy as np

from topkit.experiments.measure.summary import WHOLE
from topkit.experiments.study.curve import Curve


def note(curve: Curve, place: int) -> str:
    """That a cell's k covers the whole context, or how many of its rows are left out since it does there."""
    if curve.trivial[place]:
        return WHOLE
    rows, trivial, whole = (
        np.nan_to_num(curve.counts[name][place]) if name in curve.counts else np.zeros(1)
        for name in ("rows", "trivial_rows", "trivial")
    )
    left_out = int(trivial.sum())
    if not left_out:
        return ""
    # Rows of a haystack that is trivial throughout are among both.
    every = int((rows * (whole != 1)).sum()) + left_out
    return f"{left_out:,} of {every:,} rows left out: k covers all that they see"
