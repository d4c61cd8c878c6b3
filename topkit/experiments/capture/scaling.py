"""What attention multiplies dot products by."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from topkit.documents import quote
from topkit.errors import InputError


def scaling_of(said: Any, tensors: Mapping[str, Tensor]) -> float:
    """The scaling that is said, or D ** -0.5 where attention's own width is that of its heads.

    Raises: InputError for what is no number, and for MLA's widths, which do not tell.
    """
    if said is not None:
        try:
            return float(said.item() if hasattr(said, "item") else said)
        except (TypeError, ValueError, RuntimeError) as error:
            raise InputError(f"scaling must be a number; got {quote(said)}") from error
    width, heads = tensors["keys"].shape[3], tensors["keys"].shape[1]
    values = tensors.get("values")
    own = None if values is None else values.shape[3]
    latent = heads == 1 and own is not None and own < width
    if latent or width == 576 or (width, own) == (192, 128):
        raise InputError(
            f"keys of {width} numbers{'' if own is None else f' and values of {own}'} are MLA's, whose scaling "
            "no width tells; give scaling=, as 192 ** -0.5 of DeepSeek-V2's heads, or the engine's sm_scale"
        )
    # Keys without numbers are refused by their shape.
    return max(width, 1) ** -0.5
