"""The code of a recipe while a driver runs it: what it raises names the recipe, its method and line."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from topkit.errors import GateFailed, InputError, Undecided
from topkit.indexers.base import Indexer

# Errors that callers catch by type: they pass unchanged.
OTHERS = (InputError, GateFailed, Undecided, MemoryError, torch.OutOfMemoryError, ImportError)


@contextmanager
def recipe_code(indexer: Indexer, method: str) -> Iterator[None]:
    """Runs a method of a recipe or its index.

    Raises: InputError naming the line, where a recipe from outside of topkit is in it; what a recipe
    of topkit's own raises gets a note.
    """
    try:
        yield
    except OTHERS:
        raise
    except Exception as error:
        what, files = f"{indexer} failed in {method}", _files(indexer)
        if not files:
            error.add_note(what)
            raise
        lines = traceback.extract_tb(error.__traceback__)
        line = next((line for line in reversed(lines) if line.filename in files), lines[-1])
        raise InputError(
            f"{what}, at {line.filename}:{line.lineno}: {type(error).__name__}: {error}"
        ) from error


def _files(indexer: Indexer) -> set[str]:
    """The files of the recipes from outside of topkit in this one."""
    module = type(indexer).__module__
    codes = (getattr(x, "__code__", None) for x in vars(type(indexer)).values())
    # Also of a notebook, whose cells are no files.
    own = {code.co_filename for code in codes if code is not None}
    own = set() if module.split(".")[0] == "topkit" else own
    inner = (x for x in vars(indexer).values() if isinstance(x, Indexer))
    return own.union(*map(_files, inner))
