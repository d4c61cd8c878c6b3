"""Files of calibration: what loki and double_sparsity choose of the keys of a capture."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from topkit.errors import InputError
from topkit.experiments.capture.capture import Capture
from topkit.experiments.capture.tensors import LayerTensors
from topkit.experiments.model.digests import weights_digests
from topkit.experiments.model.load import load
from topkit.experiments.train.lightning import save_weights
from topkit.indexers.double_sparsity import double_sparsity
from topkit.indexers.key_moments import components
from topkit.indexers.loki import loki
from topkit.kernels.precision import full_precision

Learn = Callable[[Iterator[LayerTensors]], Tensor]


@full_precision()
def calibrate(
    capture: Capture | str | Path,
    method: str,
    folder: Path | str,
    *,
    model: Any = None,
) -> Path:
    """Write what a method chooses of the keys of a capture, for its `calibration` parameter.

    method: loki or double_sparsity. The file, METHOD-HASH.safetensors, is for the capture's own model in its
    own dtype, in any dtype where `model` is that model, loaded or by name; a capture of plain tensors says of
    none, and its file is for any.
    Raises: InputError for another method, what is no capture, and a model that the capture is not of.
    """
    if method not in METHODS:
        raise InputError(f"method must be one of {', '.join(METHODS)}; got {method!r}")
    if not isinstance(capture, Capture):
        capture = Capture.open(capture)
    capture.shape_of(capture.samples[0], capture.layers[0]).require_attention("a calibration")
    name, learn = METHODS[method]
    tensors = {
        f"{layer}.{name}": learn(capture.load(sample, layer) for sample in capture.samples)
        for layer in capture.layers
    }
    said = {"method": method, "capture": capture.fingerprint}
    if digests := _digests(capture, model):
        said["model"] = " ".join(digests)
    return save_weights(Path(folder), method, tensors, **said)


def _digests(capture: Capture, model: Any) -> list[str]:
    """What the model of a capture is known by; nothing where it is not known."""
    own = capture.manifest["origin"].get("weights_sha256")
    if model is None:
        return [] if own is None else [own]
    digests = weights_digests(load(model)[0] if isinstance(model, str | Path) else model)
    if own is not None and own not in digests:
        raise InputError(
            f"the capture is of another model than {model if isinstance(model, str | Path) else 'this one'}; "
            "give the model that it was captured from, or none"
        )
    return digests


def _components(samples: Iterator[LayerTensors]) -> Tensor:
    """The principal components of each head's keys over all samples, as columns [Hk, D, D]."""
    count, total, moment = 0, torch.zeros(()), torch.zeros(())
    for sample in samples:
        keys = sample.keys[0].double()
        count += keys.shape[1]
        total, moment = total + keys.sum(1), moment + keys.mT @ keys
    mean = total / count
    return components(moment / count - mean[..., None] * mean[:, None])


def _channels(samples: Iterator[LayerTensors]) -> Tensor:
    """The channels of each KV head by the sum of |q_i k_i|, a token's query with its own key [Hk, D]."""
    total = torch.zeros(())
    for sample in samples:
        keys = sample.keys[0][:, sample.positions].double()
        queries = sample.queries[0].double().unflatten(0, (len(keys), -1))
        total = total + (queries * keys[:, None]).abs().sum((1, 2))
    return total.sort(dim=-1, descending=True, stable=True).indices


METHODS: dict[str, tuple[str, Learn]] = {
    "loki": (loki.table, _components),
    "double_sparsity": (double_sparsity.table, _channels),
}
