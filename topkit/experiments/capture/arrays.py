"""Tensors of one's own, torch or numpy, as the layers of a capture."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from topkit.documents import quote
from topkit.errors import InputError
from topkit.experiments.capture import files
from topkit.experiments.capture.lengths import slots
from topkit.experiments.capture.names import SCALED
from topkit.experiments.capture.rows import Said, Sample, samples_of
from topkit.experiments.capture.stored import STORED
from topkit.experiments.capture.tensors import OF_INDEX
from topkit.kernels import checks

Array = Tensor | np.ndarray
ByLayer = Array | Mapping[int, Array] | Sequence[Array]
Positions = Sequence[int] | Sequence[Sequence[int]] | Array

Layers = dict[int, dict[str, Tensor]]


def samples_by_layer(
    named: Mapping[str, Any], scales: Mapping[str, Any], said: Said, layer: int
) -> Iterator[Sample]:
    """The samples of every layer of tensors by name, None left out by the caller.

    Raises: InputError where layers or shapes differ, and for what holds no numbers.
    """
    _require_enough(named)
    layers = _by_layer(named, layer, said.layout)
    of_scales = _by_layer(scales, layer, None, named) if scales else {}
    if not set(of_scales) <= set(layers):
        raise InputError(f"scales are of layers {sorted(of_scales)}, tensors of {sorted(layers)}")
    counts: dict[int, int] = {}
    for number, tensors in sorted(layers.items()):
        own = list(samples_of(number, tensors, of_scales.get(number, {}), said))
        counts[number] = len(own)
        yield from own
    if not any(counts.values()):
        raise InputError("there is no sample: the tensors have no layer, or no row of a batch")
    if len(set(counts.values())) > 1:
        raise InputError(f"layers have several numbers of samples: {counts}; give one file each")


def _require_enough(named: Mapping[str, ByLayer]) -> None:
    """Queries and keys, or a learned indexer's queries, keys and weights."""
    index = {"index_keys" if name == "index_cache" else name for name in named}
    if not {"queries", "keys"} & set(named):
        if index >= OF_INDEX:
            return
        if not index & OF_INDEX:
            raise InputError(
                "queries must be a tensor or array, or several by layer; got None (index_queries, index_keys "
                "and index_weights are enough too)"
            )
        raise InputError(
            f"a learned indexer alone wants index_queries, index_keys (or index_cache) and index_weights; got "
            f"{', '.join(sorted(named))}"
        )
    for name in ("queries", "keys"):
        if name not in named:
            raise InputError(f"{name} must be a tensor or array, or several by layer; got None")


def _by_layer(
    named: Mapping[str, ByLayer],
    layer: int,
    layout: str | None,
    beside: Mapping[str, ByLayer] | None = None,
) -> Layers:
    """The tensors of each layer, by name; scales `beside` tensors are split as these are."""
    first = "queries" if "queries" in (beside or named) else "index_queries"
    asked = (beside or named)[first]
    stacked = getattr(asked, "ndim", 0) == (4 if layout == "thd" else 5)
    if beside is not None:
        read = {name: dict(_layers(name, x, stacked, layer, _scale)) for name, x in named.items()}
        numbers = sorted({number for own in read.values() for number in own})
        return {n: {name: own[n] for name, own in read.items() if n in own} for n in numbers}
    split = {name: dict(_layers(name, x, stacked, layer, _tensor)) for name, x in named.items()}
    layers = sorted(split[first])
    for name, own in split.items():
        if sorted(own) != layers:
            raise InputError(f"{first} are of layers {layers}, {name} of layers {sorted(own)}")
    return {number: {name: split[name][number] for name in split} for number in layers}


def _layers(
    name: str, x: Any, stacked: bool, layer: int, read: Any
) -> Iterator[tuple[int, Tensor]]:
    if isinstance(x, Mapping):
        if not all(isinstance(number, int) for number in x):
            raise InputError(f"{name} by layer must have numbers of layers; got {quote(list(x))}")
        yield from ((int(number), read(name, part)) for number, part in x.items())
    elif isinstance(x, (list, tuple)):
        yield from ((number, read(name, part)) for number, part in enumerate(x))
    elif stacked and getattr(x, "ndim", 0):
        yield from enumerate(read(name, x))
    else:
        yield layer, read(name, x)


def _tensor(name: str, x: Any) -> Tensor:
    if name == "native":
        return slots(name, x)
    x = _plain(name, _torch(x))
    codes = name in SCALED or name == "index_cache"
    if not isinstance(x, Tensor) or x.dtype not in (*files.FLOATS, *(STORED if codes else ())):
        kind = x.dtype if isinstance(x, Array) else type(x).__name__
        raise InputError(
            f"{name} must be a floating-point torch tensor or numpy array of 16, 32 or 64 bits"
            f"{', or codes with scales' if codes else ''}; got {kind}"
        )
    return x.detach()


def _scale(name: str, x: Any) -> Tensor:
    x = _torch(torch.tensor(float(x)) if isinstance(x, (int, float)) else x)
    if not isinstance(x, Tensor):
        raise InputError(
            f"scales of {name} must be a tensor, array or number; got {type(x).__name__}"
        )
    return _plain(f"scales of {name}", x).detach()


def _plain(name: str, x: Any) -> Any:
    """A tensor whose numbers are there, each at its place."""
    if isinstance(x, Tensor):
        checks.ordinary(name, x)
    return x


def _torch(x: Any) -> Any:
    """A numpy array as a tensor, where torch has its type."""
    kinds = (np.float16, np.float32, np.float64, np.uint8, np.int8, np.int32)
    if isinstance(x, np.ndarray) and x.dtype in kinds:
        return torch.from_numpy(np.require(x, requirements=["C", "W"]))
    return x
