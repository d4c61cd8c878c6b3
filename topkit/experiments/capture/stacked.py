"""Layers that stand below one another in a file: which they are is said in a small file beside it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from topkit.documents import Whole, read_json
from topkit.errors import InputError

# Of NAME.safetensors, NAME.layers.json: a list of the layers of every tensor's first dimension.
SUFFIX = ".layers.json"


def beside(path: Path) -> tuple[Path, ...]:
    """The file that says which layers stand in another, if there is one."""
    known = path.with_suffix(SUFFIX)
    return (known,) if known.is_file() else ()


def by_layer(path: Path, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a file, those of LAYER named LAYER.name, where the file beside it says of layers.

    A number that all share, as scaling, keeps its name.
    Raises: InputError for a list that is none, and tensors of another number of layers.
    """
    known = beside(path)
    if not known:
        return dict(tensors)
    layers: list[int] = read_json(known[0], [Whole()], "delete it, or list the layers as [1, 8]")
    if not layers or len(set(layers)) < len(layers):
        raise InputError(f"{known[0]} must list each layer once; it has {layers}")
    made: dict[str, Tensor] = {}
    for name, x in tensors.items():
        if x.dim() == 0:
            made[name] = x
            continue
        if len(x) != len(layers):
            raise InputError(
                f"{known[0]} lists {len(layers)} layers; {name} is {list(x.shape)}, a layer each at first"
            )
        made |= {f"{layer}.{name}": x[at : at + 1] for at, layer in enumerate(layers)}
    return made
