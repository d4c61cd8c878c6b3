"""Paths as arguments."""

# pyright: strict
from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import cast

from topkit.documents.schema import quote
from topkit.errors import InputError


def path_of(value: object, wanted: str) -> Path:
    """A path from an argument; `wanted` says what it is to lead to, as "the folder of a run".

    Raises: InputError for what is no path.
    """
    text: object = value
    if isinstance(value, os.PathLike):
        text = cast("object", os.fspath(cast("os.PathLike[str]", value)))
    if isinstance(text, str) and "\0" not in text and not _too_long(text):
        return Path(text)
    raise InputError(f"cannot read {quote(text)}: expected the path of {wanted}")


def _too_long(text: str) -> bool:
    """Whether it is longer than a path, or a name in it, may be."""
    try:
        os.lstat(text)
    except OSError as error:
        return error.errno == errno.ENAMETOOLONG
    except ValueError:  # half a character
        return True
    return False
