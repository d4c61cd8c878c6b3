"""What choosing reads, in words."""

# pyright: strict
from __future__ import annotations

_PARTS = "half third quarter fifth sixth seventh eighth ninth tenth".split()


def at_cost(share: float | None) -> str:
    """What choosing reads, in words, over what exact Top-k reads."""
    if share is None:
        return ""
    if share == 0:
        return " and reads nothing to choose"
    times = 1 / share
    if share > 0.55:
        return f" at {share:.0%} of the bytes" if share < 0.995 or share > 1.005 else " at the same bytes"  # fmt: skip
    whole = round(times)
    if whole - 2 < len(_PARTS):
        part = _PARTS[whole - 2]
        about = "" if abs(times - whole) < 0.03 * whole else "about "
        return f" at {about}{'half' if part == 'half' else ('an ' if part == 'eighth' else 'a ') + part} of the bytes"
    return f" at 1/{whole} of the bytes"
