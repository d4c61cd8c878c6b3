"""Budgets: k in tokens, or in per cent of the context."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, cast

from topkit.documents import quote
from topkit.errors import InputError

# No context is longer; what is counted in 32 bits overflows beyond.
MOST = 2**31 - 1


@dataclass(frozen=True)
class Budget:
    """A number of keys, or a share of the context; its str parses back ("16", "1%")."""

    amount: float
    percent: bool = False

    def at(self, context: int) -> int:
        """k for a context of so many tokens: at least 1, rounded up."""
        if self.percent:
            # Rounded first: 1 % of 300 is 3, whatever the float product says.
            return max(1, math.ceil(round(self.amount * context / 100, 9)))
        return int(self.amount)

    def __str__(self) -> str:
        # To the last digit: two budgets must never have one name.
        text = f"{Decimal(repr(self.amount)).normalize():f}"
        return f"{text}%" if self.percent else text


# All of the context: a method that chooses its own number is not cut.
UNCAPPED = Budget(100.0, percent=True)

# One budget or several: "16,1%", 16, or an array or range of numbers.
Budgets = str | int | Budget | Iterable[Any] | None


def parse_budget(text: Any) -> Budget:
    """Read 16, "16" or "1%"; None and "none" are no cap: 100%.

    Raises: InputError for anything else, for k < 1 and for a share outside (0, 100].
    """
    if isinstance(text, Budget):
        return text
    text = _scalar(text)
    if text is None or (isinstance(text, str) and text.strip().lower() == "none"):
        return UNCAPPED
    if type(text) is int and abs(text) > MOST:
        raise InputError(f"k must be at most {MOST:,}; got {quote(text)}")
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*(%?)\s*", str(text))
    if isinstance(text, bool) or match is None:
        raise InputError(f"k must be a number of keys (16) or of per cent (1%); got {quote(text)}")
    amount, percent = float(match[1]), bool(match[2])
    if percent and not 0 < amount <= 100:
        raise InputError(f"a budget in per cent must lie in (0, 100]; got {text!r}")
    if not percent and amount > MOST:
        raise InputError(f"k must be at most {MOST:,}; got {text!r}")
    if not percent and (amount < 1 or amount != int(amount)):
        raise InputError(f"k must be a whole number of at least 1; got {text!r}")
    return Budget(amount, percent)


def _scalar(value: Any) -> Any:
    """The number in a list of one, or in a scalar of numpy or torch; anything else as it is."""
    number: Any = value
    if isinstance(value, list) and len(cast("list[Any]", value)) == 1:
        number = cast("list[Any]", value)[0]
    with suppress(TypeError, ValueError, RuntimeError):  # of several numbers, or none
        number = number.item() if hasattr(number, "item") else number
    return number


def parse_budgets(text: Budgets) -> list[Budget]:
    """Read "16,32,1%", one budget or several, also of numpy, of torch and of a range."""
    if isinstance(text, str):
        several: list[Any] = [part for part in text.split(",") if part.strip()] or [text]
    else:
        if isinstance(text, bytes | Mapping):
            raise InputError(
                f"k must be one budget or several, as 16,1%; got {quote(cast(Any, text))}"
            )
        text = getattr(text, "tolist", lambda: text)()
        several = list(text) if isinstance(text, Iterable) else [text]
    if not several:
        raise InputError("there is no k; name one, such as 16 or 1%")
    return list(dict.fromkeys(map(parse_budget, several)))
