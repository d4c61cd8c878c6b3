# pyright: strict
"""A file of HashAttention's maps: for each layer an MLP a head from queries, and one from keys, to bits."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from topkit.documents.digest import State
from topkit.errors import InputError
from topkit.indexers.lasting import lasting
from topkit.indexers.weights_file import read_tensors, state_of_file

ACTIVATIONS = ("silu", "relu", "gelu", "tanh")
_NAME = re.compile(r"([0-9]{1,6})\.(query|key)\.([0-9]{1,3})\.(weight|bias)")
_REMEDY = "expected LAYER.query.N.weight [heads, out, in] and .bias [heads, out], and key alike"


@dataclass(frozen=True)
class Maps:
    """The MLPs of one side of one layer, a head each. Shapes: weights [H, out, in], biases [H, out]."""

    name: str
    weights: tuple[Tensor, ...]
    biases: tuple[Tensor, ...]
    activation: str

    @property
    def heads(self) -> int:
        return len(self.weights[0])

    @property
    def bits(self) -> int:
        return self.weights[-1].shape[1]

    @property
    def width(self) -> int:
        return self.weights[0].shape[2]

    def __call__(self, vectors: Tensor) -> Tensor:
        """What bits are the signs of [B, H, t, bits], of vectors [B, h, t, D], h a divisor of H.

        Raises: InputError where the vectors are not of these heads and this width.
        """
        heads, width = vectors.shape[1], vectors.shape[3]
        if self.heads % heads or width != self.width:
            raise InputError(
                f"{self.name}.0.weight is {list(self.weights[0].shape)}; this layer has {heads} heads of "
                f"{width} dimensions; give weights of this model"
            )
        x = vectors.float().repeat_interleave(self.heads // heads, 1)
        for number, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            x = getattr(functional, self.activation)(x) if number else x
            x = x @ weight.mT + bias[:, None]
        return x


@dataclass(frozen=True)
class HashFile:
    """The maps of each layer, and what the file says of its model."""

    path: Path
    layers: dict[int, dict[str, Maps]]
    models: frozenset[str]

    @property
    def first(self) -> dict[str, Maps]:
        return self.layers[min(self.layers)]

    def maps(self, layer: int, side: str) -> Maps:
        if layer not in self.layers:
            raise InputError(f"{self.path} has no layer {layer}; it has {sorted(self.layers)}")
        return self.layers[layer][side]


def load(path: str, device: torch.device | str = "cpu") -> HashFile:
    """Read a file once a device. Raises: InputError naming the file, and what about it is wrong."""
    state = state_of_file(path, "hashattention", "weights", _REMEDY)
    return _read(Path(path), state, str(device))


@lasting(16)
def _read(path: Path, _state: State, device: str) -> HashFile:
    metadata, tensors = read_tensors(path, "hashattention", _REMEDY, device)
    tensors = {name: x.float() for name, x in tensors.items()}
    activation = metadata.get("activation", "silu")
    if activation not in ACTIVATIONS:
        raise _refused(path, f"activation is {activation!r}; known: {', '.join(ACTIVATIONS)}")
    parts: dict[int, dict[str, dict[tuple[int, str], Tensor]]] = {}
    for name, tensor in tensors.items():
        match = _NAME.fullmatch(name)
        if match is None:
            raise _refused(path, f"it has a tensor {name!r}")
        if not tensor.isfinite().all():
            raise _refused(path, f"{name} holds NaN or infinity")
        of = parts.setdefault(int(match[1]), {}).setdefault(match[2], {})
        of[int(match[3]), match[4]] = tensor
    if not parts:
        raise _refused(path, "it has no tensor")
    layers = {n: _layer(path, n, of, activation) for n, of in parts.items()}
    return HashFile(path, layers, frozenset(metadata.get("model", "").split()))


def _layer(
    path: Path, layer: int, of: Mapping[str, Mapping[tuple[int, str], Tensor]], activation: str
) -> dict[str, Maps]:
    sides = {
        side: _side(path, f"{layer}.{side}", of.get(side, {}), activation)
        for side in ("query", "key")
    }
    query, key = sides["query"], sides["key"]
    if query.bits != key.bits:
        raise _refused(path, f"layer {layer} has {query.bits} bits of queries, {key.bits} of keys")
    if query.heads % key.heads:
        raise _refused(
            path, f"{key.name}.0.weight has {key.heads} heads, no divisor of queries' {query.heads}"
        )
    return sides


def _side(path: Path, name: str, of: Mapping[tuple[int, str], Tensor], activation: str) -> Maps:
    count = len(of) // 2
    wanted = {(n, kind) for n in range(count) for kind in ("weight", "bias")}
    if not of or set(of) != wanted:
        raise _refused(path, f"{name} lacks a weight or a bias")
    weights = tuple(of[n, "weight"] for n in range(count))
    biases = tuple(of[n, "bias"] for n in range(count))
    before: int | None = None
    for n, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        if weight.dim() != 3 or 0 in weight.shape or len(weight) != len(weights[0]):
            raise _refused(path, f"{name}.{n}.weight is {list(weight.shape)}")
        if before is not None and weight.shape[2] != before:
            raise _refused(path, f"{name}.{n}.weight takes {weight.shape[2]}; {before} come")
        if bias.shape != weight.shape[:2]:
            expected = list(weight.shape[:2])
            raise _refused(path, f"{name}.{n}.bias is {list(bias.shape)}; expected {expected}")
        before = weight.shape[1]
    return Maps(f"{path}: {name}", weights, biases, activation)


def _refused(path: Path, fault: str) -> InputError:
    return InputError(f"{path} holds no hashattention weights: {fault}; {_REMEDY}")
