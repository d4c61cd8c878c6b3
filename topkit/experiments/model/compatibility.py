"""Whether a model can serve an indexer: what it hands out, how wide that is, and whose weights it has."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from functools import cache

import torch
from transformers import PreTrainedModel

from topkit.errors import InputError
from topkit.experiments.model.digests import weights_digest
from topkit.experiments.model.outline import ranges
from topkit.experiments.model.record import LayerRecord, record
from topkit.indexers.base import Indexer
from topkit.indexers.channels import Calibrated
from topkit.indexers.combinator import Combinator, leaf
from topkit.indexers.exact_group import exact_group
from topkit.indexers.lightning import GIVEN, lightning
from topkit.indexers.lightning_weights import load
from topkit.indexers.upstream import without_source
from topkit.kernels.precision import full_precision

# What a running model can hand to an indexer; of earlier tokens, only what the cache keeps.
OFFERED = frozenset(
    {"cache", "values", "hidden", "latent", "rope", "prefill_queries", "upstream", "native"}
)
# Tokens of the short pass that shows how a model attends.
PROBED = 8


@full_precision()
def probe(
    model: PreTrainedModel, purpose: str = "attached to", softmax: bool = False
) -> dict[int, LayerRecord]:
    """What attention sees in a short pass, and its modules' inputs, by layer.

    Raises: InputError for a model whose attention is not softmax(q k) v, by leave with sinks and a softcap.
    """
    places = torch.arange(PROBED)
    ids = places[None] % model.config.get_text_config().vocab_size
    return record(model, ids, places, inputs=True, purpose=purpose, softmax=softmax)


def unserved(
    model: PreTrainedModel, indexers: Iterable[Indexer], records: Mapping[int, LayerRecord]
) -> dict[Indexer, str]:
    """Why a model cannot serve some of the indexers, in a line each.

    `records` are what `probe` gave, of the layers to be served; layers count as alike.
    """
    first, name = records[min(records)], type(model).__name__
    whole = {layer for layer, one in records.items() if one.window is None}
    listed = any(one.chosen is not None for one in records.values())
    # Hashing all weights takes seconds where a model is large, and few indexers ask for it.
    weights = cache(lambda: weights_digest(model))
    reasons = {}
    for indexer in indexers:
        if indexer.models() and weights() not in indexer.models():
            reasons[indexer] = (
                f"{indexer} was made for another model than this {name}; {leaf(indexer).remedy}"
            )
        elif "native" in indexer.needs and not listed:
            reasons[indexer] = (
                f"{indexer} keeps what a model's own indexer lists, and {name} has none"
            )
        elif reason := (
            _lack(indexer, first, name)
            or without_source(indexer, whole, whole, name)
            or _without_weights(indexer, whole, name)
            or _uncalibrated(indexer, whole, first, name)
            or _beyond(indexer, records, name)
        ):
            reasons[indexer] = reason
    return reasons


def _lack(indexer: Indexer, record: LayerRecord, name: str) -> str:
    """Which input of the indexer the model named `name` lacks, or has in another width."""
    inputs = {
        "hidden": record.hidden,
        "latent": record.latent,
        "rope": None if record.rope is None else record.rope[0],
    }
    absent = {what for what, x in inputs.items() if x is None}
    if "sample" in indexer.needs:
        return f"{indexer} chooses for the samples of a capture, which `topkit measure` reads"
    if lacking := sorted(indexer.needs - (OFFERED - absent)):
        return f"{indexer} needs {', '.join(lacking)}, which {name} does not hand out"
    widths = {what: x.shape[-1] for what, x in inputs.items() if x is not None}
    widths["head_dim"] = record.keys.shape[-1]
    heads = {"heads": record.queries.shape[1], "kv_heads": record.keys.shape[1]}
    for what, width in indexer.widths().items():
        if heads.get(what, width) != width:
            return f"{indexer} is made for {width} {what}; {name} has {heads[what]}"
        if widths.get(what, width) != width:
            return f"{indexer} is made for {what} of width {width}; {name} has {widths[what]}"
    return ""


def _beyond(indexer: Indexer, records: Mapping[int, LayerRecord], name: str) -> str:
    """Which layer or KV group an indexer names that a model has none of, as a sentence; "" where it has all."""
    while isinstance(indexer, Combinator):
        own = isinstance(indexer, exact_group)
        if own and (reason := no_group(records, indexer.layer, indexer.group)):
            return f"{indexer}: {reason}, as {name} has it"
        indexer = indexer.base
    return ""


def no_group(records: Mapping[int, LayerRecord], layer: int, group: int) -> str:
    """Why a model cannot have a KV group of a layer, as a clause; "" where it selects there."""
    if layer not in records:
        return f"there is no layer {layer}, of {ranges(sorted(records))}"
    one = records[layer]
    if one.window is not None:
        return f"in layer {layer} a window slides, and nothing is selected"
    if not 0 <= group < (count := one.keys.shape[1]):
        return f"there is no KV group {group} in layer {layer}, of 0 to {count - 1}"
    return ""


def _without_weights(indexer: Indexer, layers: Collection[int], name: str) -> str:
    """Which layers would choose by index weights that a file does not hold, as a sentence; "" where none does."""
    recipe = leaf(indexer)
    if not isinstance(recipe, lightning) or recipe.weights == GIVEN:
        return ""
    there = load(recipe.weights).layers
    reusing = "upstream" in indexer.needs
    lacking = [
        n
        for n in sorted(layers)
        if n not in there and not (reusing and indexer.upstream_layer(n) is not None)
    ]
    if not lacking:
        return ""
    return (
        f"{indexer} has index weights for {ranges(there)}, and none for {ranges(lacking)} of {name}; let "
        f"layers reuse a choice, as in reuse(lightning(...), layers={tuple(there)})"
    )


def _uncalibrated(indexer: Indexer, layers: Collection[int], record: LayerRecord, name: str) -> str:
    """Which layers, or heads, a file of calibration is not for, as a sentence; "" where it is for all."""
    recipe = leaf(indexer)
    if not isinstance(recipe, Calibrated) or not recipe.calibration:
        return ""
    try:
        for layer in sorted(layers):
            recipe.calibrated(layer, record.keys)
    except InputError as error:
        return f"{error}, {name}"
    return ""
