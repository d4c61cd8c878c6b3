"""A file of maps for `projected`: of each layer, one of each query head and one of each KV head."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from topkit.documents.digest import State, state_of
from topkit.errors import InputError
from topkit.indexers.lasting import lasting
from topkit.indexers.weights_file import path_of, read_tensors

KIND = "projected"
PARTS = ("queries", "keys")
_REMEDY = "give a file that `topkit train projected` wrote"


@dataclass(frozen=True)
class Maps:
    """What queries and keys of each layer are multiplied by, and whose they are.

    Shapes: tensors, `LAYER.queries` [Hq, r, D] and `LAYER.keys` [Hk, r, D], float64; models, the digests of
    the model that they are for, none for any.
    """

    path: Path
    models: frozenset[str]
    tensors: Mapping[str, Tensor]

    @property
    def layers(self) -> list[int]:
        return sorted({int(name.split(".")[0]) for name in self.tensors})

    def widths(self) -> dict[str, int]:
        """The sizes that they fix."""
        queries, keys = (self.tensors[f"{self.layers[0]}.{part}"] for part in PARTS)
        return {"heads": len(queries), "kv_heads": len(keys), "head_dim": keys.shape[2]}

    @property
    def rank(self) -> int:
        return self.tensors[f"{self.layers[0]}.keys"].shape[1]

    def of(self, part: str, layer: int, vectors: Tensor) -> Tensor:
        """Queries or keys [B, H, t, D] through their heads' maps [B, H, t, r], float64.

        Raises: InputError for a layer or heads that they are not for.
        """
        maps = self.tensors.get(f"{layer}.{part}")
        if maps is None:
            raise InputError(
                f"projected: {self.path.name} has no maps of layer {layer}; it has {self.layers}"
            )
        if (len(maps), maps.shape[2]) != (vectors.shape[1], vectors.shape[3]):
            raise InputError(
                f"projected: {self.path.name} is for {part} of {len(maps)} heads of {maps.shape[2]} "
                f"dimensions; got {vectors.shape[1]} of {vectors.shape[3]}; train one for this model"
            )
        return vectors.double() @ maps.mT


def load(weights: str, device: torch.device | str = "cpu") -> Maps:
    """Read the file at a path, or a bundled one of that name, once a device.

    Raises: InputError naming the file, and what about it is wrong.
    """
    path = path_of(KIND, weights)
    return _read(path.resolve(), state_of(path), str(device))


@lasting(16)
def _read(path: Path, _state: State, device: str) -> Maps:
    metadata, tensors = read_tensors(path, KIND, _REMEDY, device)
    if metadata.get("kind") != KIND:
        raise _refused(path, "its metadata do not say so")
    _require(path, tensors)
    models = frozenset(metadata.get("model", "").split())
    return Maps(path, models, {name: x.double() for name, x in tensors.items()})


def _require(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Require finite maps of both sides of every layer, of the same heads, rank and dimensions."""
    shapes: dict[str, tuple[int, ...]] = {}
    for name, x in tensors.items():
        if not re.fullmatch(rf"[0-9]{{1,6}}\.({'|'.join(PARTS)})", name):
            raise _refused(path, f"it has a tensor {name!r}")
        if not x.is_floating_point() or x.dim() != 3 or 0 in x.shape:
            raise _refused(
                path, f"{name} is {x.dtype} {tuple(x.shape)}; expected heads, rank, dimensions"
            )
        if not x.isfinite().all():
            raise _refused(path, f"{name} holds NaN or infinity")
        part = name.split(".")[1]
        if shapes.setdefault(part, tuple(x.shape)) != tuple(x.shape):
            raise _refused(path, f"{name} is {tuple(x.shape)}; another layer's is {shapes[part]}")
    if not shapes:
        raise _refused(path, "it has no tensor")
    for layer in sorted({name.split(".")[0] for name in tensors}, key=int):
        for part in PARTS:
            if f"{layer}.{part}" not in tensors:
                raise _refused(path, f"layer {layer} lacks {part}")
    queries, keys = shapes["queries"], shapes["keys"]
    if queries[1:] != keys[1:] or queries[0] % keys[0]:
        raise _refused(path, f"its maps of queries are {queries}, of keys {keys}")


def _refused(path: Path, fault: str) -> InputError:
    return InputError(f"{path} holds no maps of projected: {fault}; {_REMEDY}")
