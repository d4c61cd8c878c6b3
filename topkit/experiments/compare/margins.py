"""Margins: what a candidate may lose."""

# pyright: strict
from __future__ import annotations

import math
from collections.abc import Mapping

from topkit.documents import quote
from topkit.errors import InputError

MARGINS = ("recall", "mass")
DEFAULT = "recall=0.01,mass=0.002"


def parse_margins(margin: str | Mapping[str, float]) -> dict[str, float]:
    """Margins by name: of "recall=0.01,mass=0.002", or a mapping.

    Raises: InputError for other names, for none, and for a margin outside (0, 1).
    """
    if isinstance(margin, Mapping):
        pairs = [(str(name), value) for name, value in margin.items()]
    else:
        parts = [part.partition("=") for part in str(margin).split(",")]
        pairs = [(name.strip(), value.strip()) for name, _, value in parts]
    margins: dict[str, float] = {}
    for name, value in pairs:
        if name not in MARGINS or name in margins:
            raise _wrong(margin)
        try:
            margins[name] = float(value)
        except (TypeError, ValueError):
            raise _wrong(margin) from None
    if not margins or not all(0 < x < 1 and math.isfinite(x) for x in margins.values()):
        raise _wrong(margin)
    return {name: margins[name] for name in MARGINS if name in margins}


def _wrong(margin: object) -> InputError:
    return InputError(
        f"margin must be {DEFAULT}, or one of the two, above 0 and below 1; got {quote(margin)}"
    )
