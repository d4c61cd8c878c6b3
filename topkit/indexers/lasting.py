# pyright: strict
"""What is read or made once for many calls, and lasts as long as somebody holds it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import lru_cache, wraps
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class _Here(threading.local):
    held: dict[int, object] | None = None


_here = _Here()


def lasting(most: int) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Make a function keep its last `most` results, and others for as long as they are held.

    For tensors that recipes read at steps: a CUDA graph reads them where they stood when it was captured.
    """

    def decorated(call: Callable[P, T]) -> Callable[P, T]:
        kept = lru_cache(maxsize=most)(call)

        @wraps(call)
        def found(*args: P.args, **named: P.kwargs) -> T:
            result = kept(*args, **named)
            if _here.held is not None:
                _here.held[id(result)] = result
            return result

        return found

    return decorated


@contextmanager
def held() -> Generator[dict[int, object]]:
    """Hold what this thread asks of lasting functions in here: as long as what is given lives."""
    before, found = _here.held, dict[int, object]()
    _here.held = found
    try:
        yield found
    finally:
        _here.held = before
