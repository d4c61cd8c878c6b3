"""A file of calibration: what a method chose for the layers and heads of a model, as safetensors."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from topkit.documents.digest import State
from topkit.errors import InputError
from topkit.indexers.weights_file import read_tensors, state_of_file

REMEDY = "give a file that `topkit calibrate` wrote"


@dataclass(frozen=True)
class Calibration:
    """A method's map of each layer [Hk, D, ...], and the digests of the model that it is for, if any."""

    path: Path
    method: str
    models: frozenset[str]
    layers: Mapping[int, Tensor]

    @property
    def head_dim(self) -> int:
        return next(iter(self.layers.values())).shape[1]

    def layer(self, layer: int, keys: Tensor) -> Tensor:
        """The map of a layer, on the device of its keys [B, Hk, T, D].

        Raises: InputError for a layer that it lacks, and keys of another shape.
        """
        if layer not in self.layers:
            raise InputError(
                f"{self.method}: {self.path} has no calibration of layer {layer}; it has "
                f"{sorted(self.layers)}; calibrate on a capture of this model"
            )
        table = self.layers[layer]
        if tuple(table.shape[:2]) != (keys.shape[1], keys.shape[3]):
            raise InputError(
                f"{self.method}: {self.path} calibrates {table.shape[0]} KV heads of {table.shape[1]} "
                f"dimensions; keys of layer {layer} have {keys.shape[1]} of {keys.shape[3]}; calibrate on a "
                "capture of this model"
            )
        return table.to(keys.device)


def read(path: str, method: str, table: str) -> Calibration:
    """Read a file once. Raises: InputError naming the file, and what about it is wrong."""
    return _read(Path(path), method, table, state_of_file(path, method, "calibration", REMEDY))


@lru_cache(maxsize=16)
def _read(path: Path, method: str, table: str, _state: State) -> Calibration:
    metadata, tensors = read_tensors(path, method, REMEDY)
    said = metadata.get("method")
    if said != method:
        raise _refused(path, method, f"it is of {said!r}" if said else "it names no method")
    layers = {_layer(path, method, table, n): x for n, x in tensors.items()}
    if not layers:
        raise _refused(path, method, "it has no tensor")
    for layer, x in layers.items():
        _require_map(path, method, f"{layer}.{table}", x)
    if len({x.shape for x in layers.values()}) > 1:
        raise _refused(path, method, "its layers have several shapes")
    return Calibration(path, method, frozenset(metadata.get("model", "").split()), layers)


def _layer(path: Path, method: str, table: str, name: str) -> int:
    match = re.fullmatch(rf"([0-9]{{1,6}})\.{table}", name)
    if match is None:
        raise _refused(path, method, f"it has a tensor {name!r}; expected LAYER.{table}")
    return int(match[1])


def _require_map(path: Path, method: str, name: str, x: Tensor) -> None:
    """Require all channels in an order [Hk, D] int64, or all directions, columns of [Hk, D, D] float32."""
    shape = tuple(x.shape)
    if 0 in shape or x.dim() not in (2, 3) or (x.dim() == 3 and shape[1] != shape[2]):
        raise _refused(path, method, f"{name} is {list(shape)}; expected [Hk, D] or [Hk, D, D]")
    if x.dim() == 2:
        ordered = x.dtype == torch.int64 and bool(
            (x.sort(-1).values == torch.arange(shape[1])).all()
        )
        if not ordered:
            raise _refused(path, method, f"{name} does not name each channel once, as int64")
    elif x.dtype != torch.float32 or not bool(x.isfinite().all()):
        raise _refused(path, method, f"{name} holds no float32 numbers, NaN or infinity")


def _refused(path: Path, method: str, fault: str) -> InputError:
    return InputError(f"{path} holds no calibration of {method}: {fault}; {REMEDY}")
