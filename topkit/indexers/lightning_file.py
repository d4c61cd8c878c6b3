# pyright: strict
"""What a file of index weights must hold, before it is read as one."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from topkit.documents import OneOf, Text, check
from topkit.errors import InputError

METADATA = {
    "heads": Text("[1-9][0-9]{0,3}", "a number of heads such as '8'"),
    # Which dimensions turn together, and whether the rotated ones stand first.
    "rope": OneOf("half", "interleaved"),
    "rope_at": OneOf("first", "last"),
    # What queries are made from: hidden states, or MLA's query latent.
    "reads": OneOf("hidden", "latent"),
    # Digests of the model that it is for; without them, any.
    "model?": Text("[^\0]*", "digests"),
    # What they were trained on.
    "data?": OneOf("books", "mixture"),
}
TENSORS = ("wq", "wk", "norm", "norm_bias", "gates")
# Of a matrix in int8: a scale for each of its rows.
SCALE = ".scale"
REMEDY = "give a file that topkit.experiments.train.lightning wrote"


def decoded(path: Path, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a file in float32, those in int8 by their scales.

    Raises: InputError for one in int8 without scales, scales of another shape, and scales of none.
    """
    whole = dict[str, Tensor]()
    for name, x in tensors.items():
        if name.endswith(SCALE):
            if name.removesuffix(SCALE) not in tensors:
                raise _refused(path, f"{name} scales nothing")
            continue
        scale = tensors.get(name + SCALE)
        if (x.dtype == torch.int8) != (scale is not None):
            raise _refused(path, f"{name} is {x.dtype}, and its scales {'none' if scale is None else 'there'}")  # fmt: skip
        if scale is not None and scale.shape != x.shape[:1]:
            raise _refused(path, f"{name}{SCALE} must be {tuple(x.shape[:1])}; got {tuple(scale.shape)}")  # fmt: skip
        whole[name] = x.float() if scale is None else x.float() * scale.float()[:, None]
    return whole


def require(path: Path, metadata: Mapping[str, str], tensors: Mapping[str, Tensor]) -> None:
    """Raises: InputError naming the file, for metadata and tensors that are no index weights."""
    check(dict(metadata), METADATA, f"{path} holds no lightning weights: its metadata", REMEDY)
    layers: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        match = re.fullmatch(rf"([0-9]{{1,6}})\.({'|'.join(TENSORS)})", name)
        if match is None:
            raise _refused(path, f"it has a tensor {name!r}")
        if not tensor.isfinite().all():
            raise _refused(path, f"{name} holds NaN or infinity")
        layers.setdefault(match[1], {})[match[2]] = tensor
    if not layers:
        raise _refused(path, "it has no tensor")
    for layer, of_layer in layers.items():
        lacking = sorted(set(TENSORS) - set(of_layer))
        if lacking:
            raise _refused(path, f"layer {layer} lacks {', '.join(lacking)}")
        _require_shapes(path, layer, of_layer, int(metadata["heads"]))


def _require_shapes(path: Path, layer: str, of: Mapping[str, Tensor], heads: int) -> None:
    shapes = {name: tuple(tensor.shape) for name, tensor in of.items()}
    if any(len(shapes[name]) != 2 or 0 in shapes[name] for name in ("wq", "wk", "gates")):
        raise _refused(path, f"layer {layer} has tensors of the shapes {shapes}")
    dim, width = shapes["wk"]
    wanted = {
        "wq": (heads * dim, shapes["wq"][1]),
        "gates": (heads, width),
        "norm": (dim,),
        "norm_bias": (dim,),
    }
    for name, shape in wanted.items():
        if shapes[name] != shape:
            raise _refused(path, f"{layer}.{name} must be {shape}; got {shapes[name]}")


def _refused(path: Path, fault: str) -> InputError:
    return InputError(f"{path} holds no lightning weights: {fault}; {REMEDY}")
