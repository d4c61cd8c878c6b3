"""Which layers of a model can decode through an indexer."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn
from transformers import DynamicCache, PreTrainedModel

from topkit.errors import InputError
from topkit.experiments.model.attention import is_switched
from topkit.experiments.model.compatibility import PROBED, probe, unserved
from topkit.experiments.model.outline import outline
from topkit.experiments.runs.cells import require_able
from topkit.indexers.base import Indexer
from topkit.kernels import checks


def attachable(
    model: PreTrainedModel, indexer: Indexer, layers: Iterable[int] | None
) -> tuple[dict[int, nn.Module], str]:
    """The attention modules of `layers`, by layer, and the model in one line.

    None stands for all layers that attend to all keys.

    A short pass shows how the model attends.
    Raises: InputError for a model or a layer that cannot be served, by name, and a package that is not there.
    """
    require_able(indexer)
    name = type(model).__name__
    if model.config.is_encoder_decoder:
        raise InputError(f"{name} cannot be attached to: it has an encoder")
    # Also to other layers: what two attachments change of a model comes back in one order only.
    if is_switched(model):
        raise InputError(
            f"{name} is attached already; detach it first (topkit.experiments.decode.Attachment"
            ".of(model).detach() where its handle is lost)"
        )
    records = probe(model, softmax=True)
    local = DynamicCache(config=model.config).is_sliding  # windows and chunks
    whole = {n for n, one in records.items() if one.window is None and not local[n]}
    listed = {n for n in whole if records[n].chosen is not None}
    reads_lists = "native" in indexer.needs and bool(listed)
    chosen = _chosen((listed if reads_lists else whole) if layers is None else layers)
    if not chosen:
        raise InputError(f"{name} has no layer to attach to: none attends to all keys")
    for layer in chosen:
        if layer not in records:
            there = sorted(records)
            raise InputError(f"{name} has no attention in layer {layer!r}; it has {there}")
        if layer not in whole:
            raise InputError(
                f"layer {layer} of {name} sees a window of keys and stays dense; leave it out"
            )
        if reads_lists and layer not in listed:
            raise InputError(f"layer {layer} of {name} has no indexer of its own; leave it out")
    if reasons := unserved(model, [indexer], {layer: records[layer] for layer in chosen}):
        raise InputError(reasons[indexer])
    return {layer: records[layer].module for layer in chosen}, outline(model, records, chosen)


def _chosen(layers: Iterable[int]) -> list[int]:
    try:
        several = layers.tolist() if isinstance(layers, torch.Tensor) else list(layers)
    except TypeError:
        raise InputError(f"layers must be numbers as [0, 3]; got {layers!r}") from None
    return sorted({checks.whole("layers", layer) for layer in several})


@torch.no_grad()
def decode_once(model: PreTrainedModel) -> None:
    """One step behind a few tokens, so that what a kernel does not take is refused before a prompt.

    Raises: what the step does.
    """
    training = model.training
    try:
        model.eval()
        ids = torch.ones(1, PROBED, dtype=torch.long, device=model.device)
        cache = model(ids, use_cache=True).past_key_values
        model(ids[:, :1], past_key_values=cache, use_cache=True)
    finally:
        model.train(training)
