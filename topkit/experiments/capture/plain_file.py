"""A plain safetensors file as a capture: tensors under the names that a call would give them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from topkit.documents import quote
from topkit.errors import InputError
from topkit.experiments.capture.files import read_tensors
from topkit.experiments.capture.tensors import OF_MODELS, SHAPES


def arguments_of(path: Path) -> dict[str, Any]:
    """The arguments of `Capture.from_tensors` that a file holds, named as they are.

    Raises: InputError for a file that cannot be read, and names that are none of theirs.
    """
    tensors = read_tensors(path)
    allowed = {*SHAPES, "lengths"} - OF_MODELS
    if {"queries", "keys"} - set(tensors) or set(tensors) - allowed:
        raise InputError(
            f"it must hold `queries` and `keys`, and beside them only {', '.join(sorted(allowed))}; "
            f"it holds {quote(sorted(tensors))}"
        )
    rope = (tensors.pop("rope_cos", None), tensors.pop("rope_sin", None))
    if (rope[0] is None) != (rope[1] is None):
        raise InputError("rope_cos and rope_sin come together; it holds one of them")
    scaling = tensors.pop("scaling", None)
    if scaling is not None and scaling.numel() != 1:
        raise InputError(f"scaling must be one number; got {list(scaling.shape)}")
    return {
        **tensors,
        "rope": None if rope[0] is None else rope,
        "scaling": None if scaling is None else float(scaling),
    }
