# pyright: strict
"""What a selection is worth over all rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from topkit.assertions.quality import Quality


@dataclass(frozen=True)
class Spread:
    """A figure over all rows: its mean, its 1st and 10th percentile, its median and its worst row's.

    Percentiles are rows that there are: the 1st is reached or exceeded by 99 % of them.
    """

    mean: float
    p1: float
    p10: float
    median: float
    worst: float

    @classmethod
    def of(cls, values: Tensor) -> Spread:
        """Of one number a row; NaN, where a row has an infinite score, makes all of them NaN."""
        if bool(values.isnan().any()):
            values = values.masked_fill(values == values, float("nan"))
        ordered = values.double().sort().values
        p1, p10, median = (float(ordered[len(ordered) * share // 100]) for share in (1, 10, 50))
        return cls(float(ordered.mean()), p1, p10, median, float(ordered[0]))

    def __str__(self) -> str:
        return f"mean {self.mean:.4g}, 1st percentile {self.p1:.4g}, worst {self.worst:.4g}"


@dataclass(frozen=True)
class Summary:
    """The rows of a selection together.

    rows: how many; k: how many slots each was due at most; recall, mass, mass_ratio: of the slots chosen, ties
    forgiven; worst: the indices, by the names of their dimensions, of the row of least mass ratio and then recall,
    or of the worst failure; ties: the rows whose k-th score is one with the next, so that several choices are exact.
    """

    rows: int
    k: int
    recall: Spread
    mass: Spread
    mass_ratio: Spread
    worst: dict[str, int]
    ties: int

    @classmethod
    def of(cls, figures: Quality, k: int, place: Callable[[int], dict[str, int]]) -> Summary:
        """Of the figures of all rows; place tells where row n is."""
        least = figures.mass_ratio.nan_to_num(-1) + figures.recall * 1e-6
        return cls(
            len(figures.recall), k, Spread.of(figures.recall), Spread.of(figures.mass),
            Spread.of(figures.mass_ratio), place(int(least.argmin())), int(figures.tied.sum()),
        )  # fmt: skip

    def figures(self) -> str:
        return (
            f"recall {self.recall}; mass {self.mass}; mass ratio {self.mass_ratio}; "
            f"{self.ties} of {self.rows} rows tie at the boundary"
        )

    def __str__(self) -> str:
        worst = ", ".join(f"{name} {number}" for name, number in self.worst.items())
        return (
            f"{self.rows} rows, k {self.k}: {self.figures()}{f'; worst: {worst}' if worst else ''}"
        )
