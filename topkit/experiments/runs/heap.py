"""Memory of the host that every operation on large tensors frees and soon needs again."""

# pyright: strict
from __future__ import annotations

import ctypes
from collections.abc import Generator
from contextlib import contextmanager
from functools import cache

# Of glibc's mallopt: what is freed at the heap's end is given back beyond so much, and what is larger has pages
# of its own. Beyond LARGE bytes it still has.
_TRIM, _OWN_PAGES = -1, -3
LARGE = 1 << 30
# What glibc lets either grow to by itself.
_USUAL = {_TRIM: 1 << 26, _OWN_PAGES: 1 << 25}


@contextmanager
def freed_memory_kept() -> Generator[None]:
    """In here freed memory is kept for the next allocation; at the end the system gets it back.

    The system would clear each page anew, which costs more than most of what is then written there. Nothing
    where the C library is not glibc.
    """
    libc = _glibc()
    if libc is None:
        yield
        return
    try:
        libc.mallopt(_TRIM, 2 * LARGE - 1)
        libc.mallopt(_OWN_PAGES, LARGE)
        yield
    finally:
        for which, usual in _USUAL.items():
            libc.mallopt(which, usual)
        libc.malloc_trim(0)


@cache
def _glibc() -> ctypes.CDLL | None:
    try:
        libc = ctypes.CDLL(None)
        return libc if all(map(libc.__getattr__, ("gnu_get_libc_version", "mallopt"))) else None
    except (OSError, AttributeError, TypeError):  # another C library; another system
        return None
