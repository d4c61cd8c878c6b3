"""Which threads run an attached model, so that none finds it changed midway."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from topkit.errors import InputError


class Running:
    """Counts the calls of a model that each thread is in."""

    def __init__(self) -> None:
        self._calls: Counter[int] = Counter()
        self._lock = threading.RLock()

    def enter(self, *_: Any) -> None:
        """A call begins in this thread."""
        with self._lock:
            self._calls[threading.get_ident()] += 1

    def leave(self, *_: Any) -> None:
        """A call ends in this thread; also one whose beginning was prevented."""
        here = threading.get_ident()
        with self._lock:
            self._calls[here] -= 1
            if self._calls[here] <= 0:
                del self._calls[here]

    @contextmanager
    def here(self) -> Iterator[None]:
        """A call of this thread."""
        self.enter()
        try:
            yield
        finally:
            self.leave()

    @contextmanager
    def no_other(self) -> Iterator[None]:
        """No call of another thread runs or begins in here.

        Raises: InputError where one runs.
        """
        with self._lock:
            if others := len(self._calls.keys() - {threading.get_ident()}):
                raise InputError(
                    f"{others} other thread{'s run' if others > 1 else ' runs'} the attached model; "
                    "let threads end before detach, which would change their tokens midway"
                )
            yield
