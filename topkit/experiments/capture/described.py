"""What a manifest says of tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from topkit.documents import quote
from topkit.errors import InputError
from topkit.experiments.capture import files
from topkit.experiments.capture.manifest import FORMAT
from topkit.experiments.capture.tensors import LayerTensors


def require_record(loaded: LayerTensors, record: Mapping[str, Any]) -> None:
    """A manifest and its files must say the same of a sample."""
    tokens, positions = loaded.keys.shape[2], loaded.positions.tolist()
    if (tokens, positions) != (record["tokens"], record["positions"]):
        raise InputError(
            f"{tokens} keys, and queries at {quote(positions)}, where the manifest says "
            f"{record['tokens']} and {quote(record['positions'])}; capture again with --force"
        )


def _require_one_text(tensors: Mapping[tuple[int, int], LayerTensors]) -> None:
    """The layers of a sample are of the same tokens, and of the same queries."""
    first: dict[int, LayerTensors] = {}
    for (sample, layer), x in sorted(tensors.items()):
        other = first.setdefault(sample, x)
        if (x.keys.shape[2], x.positions.tolist()) != (
            other.keys.shape[2],
            other.positions.tolist(),
        ):
            raise InputError(
                f"sample {sample} has {x.keys.shape[2]} keys and {len(x.positions)} queries in layer {layer}, "
                f"{other.keys.shape[2]} and {len(other.positions)} in layer {other.layer}: the layers are of "
                "several texts or steps; give one file each"
            )


def described(tensors: Mapping[tuple[int, int], LayerTensors]) -> dict[str, Any]:
    """The manifest of tensors by sample and layer, which may be on the meta device."""
    _require_one_text(tensors)
    of_layer = {layer: x for (_, layer), x in tensors.items()}
    of_sample = {sample: x for (sample, _), x in tensors.items()}
    listed = [x.native.shape[-1] for x in tensors.values() if x.native is not None]
    return {
        **FORMAT,
        "origin": {"source": "tensors"},
        **({"own_k": max(listed)} if listed else {}),
        "layers": [{"layer": n, "scaling": x.scaling} for n, x in sorted(of_layer.items())],
        "samples": [
            {"sample": n, "tokens": x.keys.shape[2], "positions": x.positions.tolist()}
            for n, x in sorted(of_sample.items())
        ],
        "files": [
            {
                "sample": sample,
                "layer": layer,
                "bytes": files.file_bytes(x.tensors()),
                "tensors": files.in_words(x.tensors()),
            }
            for (sample, layer), x in sorted(tensors.items())
        ],
    }
