# pyright: strict
"""Whether a selection is the same again, and how many of its rows have ties."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Change:
    """Rows whose set of slots differs from the first call's; of them, those that swap tied scores alone."""

    rows: int
    among_ties: int

    def __str__(self) -> str:
        if self.rows == 0:
            return "the same"
        return f"{self.rows} rows differ, {self.among_ties} of them among tied scores alone"


@dataclass(frozen=True)
class Audit:
    """What repeated, chunked and padded calls chose.

    rows: how many lists there are; ties: those whose k-th score is one with the next, None where no scores are
    known; runs, chunked, alone, padded: what changed, None where it could not be tried (one query; one row; no
    lengths).
    """

    rows: int
    ties: int | None
    runs: Change
    chunked: Change | None
    alone: Change | None
    padded: Change | None

    @property
    def changes(self) -> dict[str, Change | None]:
        return {
            "runs": self.runs,
            "chunked": self.chunked,
            "alone": self.alone,
            "padded": self.padded,
        }

    def __str__(self) -> str:
        ties = "ties unknown" if self.ties is None else f"{self.ties} with ties at the boundary"
        said = [f"{name}: {change or 'not tried'}" for name, change in self.changes.items()]
        return f"{self.rows} rows, {ties}; {'; '.join(said)}"
