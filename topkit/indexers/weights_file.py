# pyright: strict
"""Safetensors files that recipes read: where one is, whether it has changed, what it contains."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from topkit.documents.digest import State, state_of
from topkit.errors import InputError

_DATA = Path(__file__).parents[1] / "data"
# Of a checkout, and in no wheel.
_CHECKOUT = Path(__file__).parents[2] / "weights"
_HASH = "[0-9a-f]" * 12


def path_of(method: str, weights: str) -> Path:
    """A method's bundled file of a name, one of the checkout's, else the file at a path.

    A file called `reference` is `./reference`. Raises: InputError when there is none.
    """
    named = re.fullmatch(r"[\w.-]+", weights)  # a path is no pattern
    folders = [root / method for root in (_DATA, _CHECKOUT)] if named else []
    ours = [p for f in folders for p in sorted(f.glob(f"{weights}-{_HASH}.safetensors"))]
    path = ours[0] if ours else Path(weights)
    try:
        if path.is_file():
            return path
    except (OSError, ValueError):  # longer than a path may be, or with a NUL
        pass
    shown = weights if len(weights) <= 200 else f"{weights[:40]}..."
    raise InputError(
        f"{method}: no weights at {shown!r}; give a file, a bundled name or, in a checkout of topkit, a name in "
        f"weights/{method}"
    )


def state_of_file(path: str, method: str, what: str, remedy: str) -> State:
    """The state of a file that a method reads. Raises: InputError that names it where there is none, or a folder."""
    try:
        state = state_of(Path(path))
        if Path(path).is_file():
            return state
        why = "it is a folder" if Path(path).is_dir() else "it is no plain file"
    except OSError as error:
        why = error.strerror or str(error)
    except ValueError as error:  # of a name with a NUL
        why = str(error)
    raise InputError(f"{method}: no {what} at {path[:200]!r}: {why}; {remedy}")


def read_tensors(
    path: Path, method: str, remedy: str, device: torch.device | str = "cpu"
) -> tuple[dict[str, str], dict[str, Tensor]]:
    """A file's metadata and tensors.

    Raises: InputError when its contents are not those that the hash in its name promises, or are no
    safetensors.
    """
    promised = re.search(r"-([0-9a-f]{12})\.safetensors$", path.name)
    if promised and hashlib.sha256(path.read_bytes()).hexdigest()[:12] != promised[1]:
        raise InputError(f"{path} is altered: its contents do not hash to {promised[1]}")
    try:
        opened: Any = safe_open(path, "pt", device=str(device))
        with opened as file:
            metadata: dict[str, str] = file.metadata() or {}
            return metadata, {name: file.get_tensor(name) for name in file.keys()}
    except (SafetensorError, OSError, RuntimeError, LookupError, TypeError) as error:
        why = " ".join(str(error).split())[:200]
        raise InputError(f"{method}: cannot read {path} as safetensors: {why}; {remedy}") from error
