# pyright: strict
"""What every row of a selection must keep to."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Real

from topkit.errors import InputError
from topkit.kernels import checks


@dataclass(frozen=True)
class Demand:
    """The bounds of a row, and the scaling of its weights (None: the scores' own)."""

    k: int
    recall: float | None = None
    mass: float | None = None
    mass_ratio: float | None = None
    scaling: float | None = None
    tolerance: float = 0.0

    @classmethod
    def of(
        cls,
        k: object,
        *,
        recall: object = None,
        mass: object = None,
        mass_ratio: object = None,
        scaling: object = None,
        tolerance: object = 0.0,
    ) -> Demand:
        """The same, of what a caller says.

        Raises: InputError for bounds that cannot be.
        """
        count = checks.at_least_one("k", k)
        shares = (_share("recall", recall), _share("mass", mass), _share("mass_ratio", mass_ratio))
        scale = None if scaling is None else _number("scaling", scaling)
        if scale is not None and scale < 0:
            raise InputError(f"scaling must not be below 0; got {scale}")
        slack = _number("tolerance", tolerance)
        if not 0 <= slack < 1:
            raise InputError(f"tolerance must be a share from 0 to below 1; got {slack}")
        return cls(count, *shares, scale, slack)

    @property
    def least(self) -> dict[str, float]:
        """The bounds that are set, by the name of what they bound."""
        bounds = {"recall": self.recall, "mass": self.mass, "mass ratio": self.mass_ratio}
        return {name: bound for name, bound in bounds.items() if bound is not None}

    @property
    def exactly(self) -> bool:
        return not self.least

    def __str__(self) -> str:
        said = [f"{name} of at least {x:g}" for name, x in self.least.items()]
        return " and ".join(said) or "the exact Top-k by score"


def _number(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
        raise InputError(f"{name} must be a finite number; got {value!r}")
    return float(value)


def _share(name: str, value: object) -> float | None:
    if value is None:
        return None
    share = _number(name, value)
    if not 0 < share <= 1:
        raise InputError(f"{name} must lie above 0 and not above 1; got {share:g}")
    return share
