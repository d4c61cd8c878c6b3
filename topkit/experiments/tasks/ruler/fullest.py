"""The fullest prompt of a length."""

# pyright: strict
from __future__ import annotations

from collections.abc import Callable

# So many guesses by the tokens of what was tried; then halves, which end for certain.
GUESSES = 12


def fullest(cost: Callable[[int], int], most: int, least: int) -> int:
    """The largest number of units, `least` at least, whose cost is at most `most`; -1 where none is.

    cost: tokens of so many units; more units should cost more.
    """
    low, spent = least, cost(least)
    if spent > most:
        return -1
    high, each, tries = 0, max(spent / max(least, 1), 1e-3), 0
    while not high or high - low > 1:
        tries += 1
        guess = low + max(1, int((most - spent) / each))
        if high:
            guess = min(guess, high - 1) if tries < GUESSES else (low + high) // 2
        now = cost(guess)
        each = max((now - spent) / (guess - low), 1e-3)
        if now <= most:
            low, spent = guess, now
        else:
            high = guess
    return low
