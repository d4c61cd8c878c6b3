"""Halves: what a job had written when it was killed."""

from __future__ import annotations

from pathlib import Path

from topkit.experiments.runs.folder import gone


def drop_halves(out: Path) -> None:
    """Accuracy is written last: fidelity without it is of a job that was never finished.

    Accuracy whose fidelity was deleted goes as well, and both are made again.
    """
    for path in (out / "fidelity").glob("*.parquet"):
        if not (out / "accuracy" / path.name).exists():
            path.unlink()
    for name in gone(out, "fidelity"):
        (out / "accuracy" / name).unlink(missing_ok=True)
