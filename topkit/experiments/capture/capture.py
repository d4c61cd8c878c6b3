"""Captured attention inputs: what the attention of each layer saw, of a model or of one's own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from topkit.errors import InputError
from topkit.experiments.capture import files
from topkit.experiments.capture.tensors import SHAPES, LayerTensors, estimate_bytes
from topkit.experiments.capture.writer import Writer

__all__ = ["Capture", "LayerTensors", "estimate_bytes"]

Array = Tensor | np.ndarray
ByLayer = Array | Mapping[int, Array] | Sequence[Array]
Positions = Sequence[int] | Sequence[Sequence[int]] | Array


@dataclass(frozen=True, eq=False)
class Capture:
    """The tensors of some samples and layers, in memory or in a folder, and what is known of them.

    `manifest` tells origin, samples (prompt, positions), layers (scaling) and files (sha256).
    """

    manifest: dict[str, Any]
    folder: Path | None = None
    tensors: Mapping[tuple[int, int], LayerTensors] | None = None
    verified: bool = False

    @classmethod
    def open(cls, path: str | Path, *, verify: bool = True) -> Capture:
        """Open a folder that `topkit capture` or `save` wrote, or a plain safetensors file.

        A plain file holds tensors named as the arguments of `from_tensors`: queries, keys, and if
        they are there values, index_queries, index_keys, index_weights, scaling, lengths, positions.
        Without `verify` the files are checked one by one as they are loaded, not all at once here.
        Raises: InputError naming the file that is missing, truncated, altered or not understood.
        """
        path = Path(path)
        if path.is_file():
            return _open_file(path)
        manifest = files.open_manifest(path)
        if verify:
            files.verify_files(path, manifest)
        return cls(manifest, folder=path, verified=verify)

    @classmethod
    def from_tensors(
        cls,
        queries: ByLayer,
        keys: ByLayer,
        values: ByLayer | None = None,
        index_queries: ByLayer | None = None,
        index_keys: ByLayer | None = None,
        index_weights: ByLayer | None = None,
        scaling: float | None = None,
        lengths: Sequence[int] | Array | None = None,
        *,
        positions: Positions | None = None,
        hidden: ByLayer | None = None,
        latent: ByLayer | None = None,
        rope: tuple[ByLayer, ByLayer] | None = None,
        layer: int = 0,
    ) -> Capture:
        """A capture of tensors of one's own, torch or numpy; each row of the batch is a sample.

        Shapes: as in LayerTensors with B in place of 1; without the batch dimension all are one
        sample; several layers as a dict by layer, a list, or one more dimension in front. lengths
        [B], the real keys of each row, the rest is padding on the right; positions [Tq] or [B, Tq],
        by default the queries are the last Tq real tokens. scaling: by default D ** -0.5; MLA with
        absorbed weights (576/512) wants that of its unabsorbed heads. float64 becomes float32.
        Raises: InputError for shapes that do not fit, and for NaN or infinity (layer and head).
        """
        named = {
            "queries": queries,
            "keys": keys,
            "values": values,
            "hidden": hidden,
            "latent": latent,
            "rope_cos": rope and rope[0],
            "rope_sin": rope and rope[1],
            "index_queries": index_queries,
            "index_keys": index_keys,
            "index_weights": index_weights,
        }
        by_layer = _by_layer({name: x for name, x in named.items() if x is not None}, layer)
        tensors = {}
        for number, of_layer in by_layer.items():
            for row in _rows(number, of_layer, scaling, lengths, positions):
                row.require_finite()
                tensors[row.sample, number] = row
        return cls(_manifest(tensors), tensors=tensors)

    @property
    def samples(self) -> list[int]:
        return sorted({entry["sample"] for entry in self.manifest["files"]})

    @property
    def layers(self) -> list[int]:
        return sorted({entry["layer"] for entry in self.manifest["files"]})

    @property
    def fingerprint(self) -> str:
        """A digest of all tensors: the same in memory, on disk and on every machine."""
        entries = [(e["sample"], e["layer"], self._sha256(e)) for e in self.manifest["files"]]
        return files.digest_blocks([repr(sorted(entries)).encode()])

    def _sha256(self, entry: dict[str, Any]) -> str:
        if self.tensors is not None and "sha256" not in entry:
            named = self.tensors[entry["sample"], entry["layer"]].tensors()
            entry["sha256"] = files.digest_blocks(files.file_blocks(named))
        return entry["sha256"]

    def load(self, sample: int, layer: int) -> LayerTensors:
        """The tensors of one layer over one sample, memory-mapped where they lie on disk.

        Raises: InputError when the capture does not hold them, or the file was altered.
        """
        wanted = [e for e in self.manifest["files"] if (e["sample"], e["layer"]) == (sample, layer)]
        if not wanted:
            raise InputError(
                f"the capture has no sample {sample}, layer {layer}; "
                f"samples: {self.samples}, layers: {self.layers}"
            )
        if self.folder is None:
            assert self.tensors is not None
            return self.tensors[sample, layer]
        if not self.verified:
            files.verify_file(self.folder, wanted[0])
        tensors = files.read_tensors(self.folder / wanted[0]["name"])
        return LayerTensors.from_tensors(sample, layer, tensors)

    def save(self, folder: str | Path, *, force: bool = False) -> Capture:
        """Write the capture into a folder, and open it there.

        Raises: InputError when the folder holds another capture (unless `force`), or the disk is
        full.
        """
        folder = Path(folder)
        origin = {**self.manifest["origin"], "fingerprint": self.fingerprint}
        files.require_space(folder, sum(entry["bytes"] for entry in self.manifest["files"]))
        writer = Writer(folder, origin, self.samples, force=force)
        writer.begin()
        for record in self.manifest["samples"]:
            if not writer.has(record):
                loaded = [self.load(record["sample"], layer) for layer in self.layers]
                writer.add(record, {x.layer: x.tensors() for x in loaded})
        known = {"origin", "samples", "files"}
        writer.close({key: x for key, x in self.manifest.items() if key not in known})
        return Capture.open(folder)


def _open_file(path: Path) -> Capture:
    tensors = files.read_tensors(path)
    allowed = {*SHAPES, "lengths"}
    if {"queries", "keys"} - set(tensors) or set(tensors) - allowed:
        raise InputError(
            f"{path} must hold `queries` and `keys`, and beside them only {sorted(allowed)}; "
            f"it holds {sorted(tensors)}"
        )
    rope = (tensors.pop("rope_cos", None), tensors.pop("rope_sin", None))
    if (rope[0] is None) != (rope[1] is None):
        raise InputError(f"{path}: rope_cos and rope_sin come together; it holds one of them")
    scaling = tensors.pop("scaling", None)
    if scaling is not None and scaling.numel() != 1:
        raise InputError(f"{path}: scaling must be one number; got {list(scaling.shape)}")
    return Capture.from_tensors(
        **tensors,  # type: ignore[arg-type]
        rope=None if rope[0] is None or rope[1] is None else (rope[0], rope[1]),
        scaling=None if scaling is None else float(scaling),
    )


def _by_layer(named: Mapping[str, ByLayer], layer: int) -> dict[int, dict[str, Tensor]]:
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
    if isinstance(x, np.ndarray) and x.dtype in (np.float16, np.float32, np.float64):
        x = torch.from_numpy(np.require(x, requirements=["C", "W"]))
    if not isinstance(x, Tensor) or not x.is_floating_point():
        kind = x.dtype if isinstance(x, Array) else type(x).__name__
        raise InputError(f"{name} must be a floating-point torch tensor or numpy array; got {kind}")
    return x.detach().float() if x.dtype == torch.float64 else x.detach()


def _whole_numbers(name: str, x: Any) -> Tensor:
    try:
        numbers = torch.as_tensor(x)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{name} must be whole numbers; got {x!r}") from error
    if (numbers != numbers.long()).any():
        raise InputError(f"{name} must be whole numbers; got {numbers.tolist()}")
    return numbers.long()


def _number(name: str, x: Any) -> float:
    try:
        return float(x)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{name} must be a number; got {x!r}") from error


def _rows(
    layer: int,
    named: dict[str, Tensor],
    scaling: float | None,
    lengths: Sequence[int] | Array | None,
    positions: Positions | None,
) -> Iterator[LayerTensors]:
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


def _manifest(tensors: Mapping[tuple[int, int], LayerTensors]) -> dict[str, Any]:
    of_layer = {layer: x for (_, layer), x in tensors.items()}
    of_sample = {sample: x for (sample, _), x in tensors.items()}
    return {
        **files.FORMAT,
        "origin": {"source": "tensors"},
        "layers": [{"layer": n, "scaling": x.scaling} for n, x in sorted(of_layer.items())],
        "samples": [
            {"sample": n, "tokens": x.keys.shape[2], "positions": x.positions.tolist()}
            for n, x in sorted(of_sample.items())
        ],
        "files": [
            {"sample": sample, "layer": layer, "bytes": files.file_bytes(x.tensors())}
            for (sample, layer), x in sorted(tensors.items())
        ],
    }
