"""Tensors of one's own, torch or numpy, as the layers and rows of a capture."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from topkit.documents import quote
from topkit.errors import InputError
from topkit.experiments.capture import files
from topkit.experiments.capture.tensors import SHAPES, LayerTensors

Array = Tensor | np.ndarray
ByLayer = Array | Mapping[int, Array] | Sequence[Array]
Positions = Sequence[int] | Sequence[Sequence[int]] | Array


def by_layer(named: Mapping[str, ByLayer], layer: int) -> dict[int, dict[str, Tensor]]:
    """The tensors of each layer, by name. Raises: InputError where layers differ, and for other numbers."""
    for name in ("queries", "keys"):
        if name not in named:
            raise InputError(f"{name} must be a tensor or array, or several by layer; got None")
    split = {name: dict(_layers(name, x, named["queries"], layer)) for name, x in named.items()}
    layers = sorted(split["queries"])
    for name, by_layer in split.items():
        if sorted(by_layer) != layers:
            raise InputError(f"queries are of layers {layers}, {name} of layers {sorted(by_layer)}")
    return {number: {name: split[name][number] for name in split} for number in layers}


def _layers(name: str, x: ByLayer, queries: ByLayer, layer: int) -> Iterator[tuple[int, Tensor]]:
    if isinstance(x, Mapping):
        yield from ((int(number), _tensor(name, part)) for number, part in x.items())
    elif isinstance(x, (list, tuple)):
        yield from ((number, _tensor(name, part)) for number, part in enumerate(x))
    elif getattr(queries, "ndim", 0) == 5:
        yield from enumerate(_tensor(name, x))
    else:
        yield layer, _tensor(name, x)


def _tensor(name: str, x: Any) -> Tensor:
    if name == "native":
        return _whole_numbers(name, x).int()
    if isinstance(x, np.ndarray) and x.dtype in (np.float16, np.float32, np.float64):
        x = torch.from_numpy(np.require(x, requirements=["C", "W"]))
    if not isinstance(x, Tensor) or x.dtype not in files.FLOATS:
        kind = x.dtype if isinstance(x, Array) else type(x).__name__
        raise InputError(
            f"{name} must be a floating-point torch tensor or numpy array of 16, 32 or 64 bits; "
            f"got {kind}"
        )
    return x.detach().float() if x.dtype == torch.float64 else x.detach()


def _whole_numbers(name: str, x: Any) -> Tensor:
    try:
        numbers = torch.as_tensor(x).cpu()
        whole = numbers.long()
        same = numbers.dtype != torch.bool and bool((numbers.double() == whole.double()).all())
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{name} must be whole numbers; got {quote(x)}") from error
    if not same:
        raise InputError(f"{name} must be whole numbers; got {quote(numbers.tolist())}")
    return whole


def _number(name: str, x: Any) -> float:
    try:
        return float(x)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{name} must be a number; got {quote(x)}") from error


def rows_of(
    layer: int,
    named: dict[str, Tensor],
    scaling: float | None,
    lengths: Sequence[int] | Array | None,
    positions: Positions | None,
) -> Iterator[LayerTensors]:
    """The rows of one layer's batch, padding cut off. Raises: InputError for what does not fit."""
    batched = _batched(layer, named)
    rows, _, count, dim = batched["queries"].shape
    width = batched["keys"].shape[2]
    real = [width] * rows
    if lengths is not None:
        real = _whole_numbers("lengths", lengths).reshape(-1).tolist()
    if len(real) != rows or not all(1 <= n <= width for n in real):
        raise InputError(f"lengths must be {rows} numbers from 1 to {width}, one a row; got {real}")
    for row, length in enumerate(real):
        at = _positions(positions, rows, row, count, length)
        tensors = {name: _cut(name, x[row : row + 1], length) for name, x in batched.items()}
        tensors["positions"] = at
        scale = dim**-0.5 if scaling is None else _number("scaling", scaling)
        tensors["scaling"] = torch.tensor(scale, dtype=torch.float64)
        yield LayerTensors.from_tensors(row, layer, tensors)


def _batched(layer: int, named: dict[str, Tensor]) -> dict[str, Tensor]:
    if named["queries"].ndim == 3:
        named = {name: x[None] for name, x in named.items()}
    if "index_keys" in named and named["index_keys"].ndim == 3:
        named["index_keys"] = named["index_keys"][:, None]
    for name, x in named.items():
        form = SHAPES[name].replace("1", "B", 1).split()
        if x.ndim != len(form) or len(x) != len(named["queries"]):
            raise InputError(
                f"layer {layer}: {name} must be [{', '.join(form)}] with the batch of the queries "
                f"{list(named['queries'].shape)}; got {list(x.shape)}"
            )
    return named


def _cut(name: str, x: Tensor, length: int) -> Tensor:
    form = SHAPES[name].split()
    return x.narrow(form.index("T"), 0, min(length, x.shape[form.index("T")])) if "T" in form else x


def _positions(positions: Positions | None, rows: int, row: int, count: int, length: int) -> Tensor:
    if positions is None:
        if count > length:
            raise InputError(
                f"sample {row} has {count} queries and {length} keys: each query is one of the "
                "last tokens, so there cannot be more; give positions= where it is otherwise"
            )
        return torch.arange(length - count, length)
    at = _whole_numbers("positions", positions)
    if at.shape not in {(count,), (rows, count)}:
        raise InputError(f"positions must be [{count}] or [{rows}, {count}]; got {list(at.shape)}")
    return at if at.ndim == 1 else at[row]
