"""A file of ready lists: safetensors or npz, a tensor `LAYER.indices` for each layer, or an engine's response."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from topkit.documents.digest import State
from topkit.errors import InputError
from topkit.indexers.engine_lists import REMEDY, read_array, read_response
from topkit.indexers.weights_file import state_of_file

WHOLE = (torch.int32, torch.int64, torch.int16)
ENGINES = {".json": read_response, ".npy": read_array}


@dataclass(frozen=True)
class IndicesFile:
    """Lists by layer [B, Hs, Tq, k], and their positions [B or 1, Tq], or None: of the last tokens."""

    path: Path
    layers: Mapping[int, Tensor]
    positions: Tensor | None

    def lists(self, layer: int, sample: int, at: Tensor, length: int) -> Tensor:
        """The lists [Hs, n, k] int64 of the queries at some positions [n] of a sample of `length` tokens.

        Raises: InputError naming what the file lacks.
        """
        if layer not in self.layers:
            raise InputError(f"{self.path} has no layer {layer}; it has {sorted(self.layers)}")
        lists = self.layers[layer]
        if sample >= len(lists):
            raise InputError(f"{self.path} has {len(lists)} samples; sample {sample} is asked")
        count = lists.shape[2]
        if self.positions is None:
            there = torch.arange(length - count, length)
        else:
            there = self.positions[sample if len(self.positions) > 1 else 0]
        match = there == at[:, None]
        if not match.any(-1).all():
            lacking = at[~match.any(-1)].tolist()
            raise InputError(
                f"{self.path} has no list of position {lacking[0]} of sample {sample}; it has "
                f"{count}, from {int(there[0])} to {int(there[-1])}"
            )
        return lists[sample][:, match.int().argmax(-1)].long()


def read(path: str) -> IndicesFile:
    """Read a file once. Raises: InputError naming the file, and what about it is wrong."""
    return _read(Path(path), state_of_file(path, "indices", "file", REMEDY))


@lru_cache(maxsize=4)
def _read(path: Path, _state: State) -> IndicesFile:
    if path.suffix in ENGINES:
        return _of_engine(path)
    tensors = _tensors(path)
    positions = tensors.pop("positions", None)
    layers = {}
    for name, lists in tensors.items():
        layer = re.fullmatch(r"([0-9]{1,6})\.indices", name)
        if layer is None:
            raise _refused(path, f"it has a tensor {name!r}; expected LAYER.indices, and positions")
        layers[int(layer[1])] = _shaped(path, name, lists)
    if not layers:
        raise _refused(path, "it has no LAYER.indices")
    shapes = {(len(x), x.shape[2]) for x in layers.values()}
    if len(shapes) > 1:
        raise _refused(path, f"its layers have several numbers of samples and positions: {shapes}")
    return IndicesFile(path, layers, _placed(path, positions, *next(iter(shapes))))


def _of_engine(path: Path) -> IndicesFile:
    """What an engine answered. Raises: InputError naming the file."""
    try:
        return IndicesFile(path, *ENGINES[path.suffix](path))
    except (OSError, EOFError, ValueError) as error:
        raise _refused(path, " ".join(str(error).split())[:300]) from error


def _tensors(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as file:
                if len(set(file.files)) < len(file.files):
                    raise ValueError("a name stands twice")
                return {name: torch.from_numpy(np.ascontiguousarray(file[name])) for name in file}
        with safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}
    except (SafetensorError, OSError, ValueError, TypeError, RuntimeError, LookupError) as error:
        why = " ".join(str(error).split())[:200]
        raise InputError(f"cannot read {path} as safetensors or npz: {why}; {REMEDY}") from error


def _shaped(path: Path, name: str, lists: Tensor) -> Tensor:
    """[Tq, k] of one sample, and [B, Tq, k] of one list a layer, as [B, Hs, Tq, k]."""
    if lists.dtype not in WHOLE:
        raise _refused(path, f"{name} is {lists.dtype}; expected int32 or int64")
    if lists.ndim not in (2, 3, 4) or 0 in lists.shape:
        raise _refused(
            path, f"{name} must be [Tq, k], [B, Tq, k] or [B, Hs, Tq, k]; got {list(lists.shape)}"
        )
    if lists.ndim == 2:
        return lists[None, None]
    return lists[:, None] if lists.ndim == 3 else lists


def _placed(path: Path, positions: Tensor | None, samples: int, count: int) -> Tensor | None:
    if positions is None:
        return None
    if positions.dtype not in WHOLE or positions.shape not in ((count,), (samples, count)):
        raise _refused(
            path,
            f"positions must be whole numbers [{count}] or [{samples}, {count}]; got "
            f"{positions.dtype} {list(positions.shape)}",
        )
    positions = positions.reshape(-1, count).long()
    if any(len(set(row)) < count for row in positions.tolist()):
        raise _refused(path, "a position is named twice")
    return positions


def _refused(path: Path, fault: str) -> InputError:
    return InputError(f"{path} holds no ready indices: {fault}; {REMEDY}")
