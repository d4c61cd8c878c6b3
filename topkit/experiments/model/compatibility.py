"""Whether a model can serve an indexer: what it hands out, how wide that is, and whose weights it has."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache

import torch
from torch import nn
from transformers import PreTrainedModel

from topkit.experiments.model.digests import weights_digest
from topkit.experiments.model.record import Seen, record
from topkit.indexers.base import Indexer

# What a running model can hand to an indexer; of earlier tokens, only what the cache keeps.
OFFERED = frozenset({"cache", "values", "hidden", "latent", "rope", "prefill_queries"})
# Tokens of the short pass that shows how a model attends.
PROBED = 8


def probe(
    model: PreTrainedModel, inputs: dict[int, nn.Module] | None = None, purpose: str = "attached to"
) -> dict[int, Seen]:
    """What attention sees in a short pass, by layer; of `inputs`' modules also what they are given.

    Raises: InputError for a model whose attention is not softmax(q k) v.
    """
    places = torch.arange(PROBED)
    ids = places[None] % model.config.get_text_config().vocab_size
    return record(model, ids, places, inputs=inputs, purpose=purpose)


def unserved(
    model: PreTrainedModel, indexers: Iterable[Indexer], seen: Mapping[int, Seen]
) -> dict[Indexer, str]:
    """Why a model cannot serve some of the indexers, in a line each; `seen` is what `probe` gave."""
    modules = {layer: one.module for layer, one in seen.items()}
    first = probe(model, modules)[min(seen)]
    name = type(model).__name__
    # Hashing all weights takes seconds where a model is large, and few indexers ask for it.
    weights = cache(lambda: weights_digest(model))
    reasons = {}
    for indexer in indexers:
        if indexer.models() and weights() not in indexer.models():
            reason = (
                f"{indexer} was made for another model than this {name}; make weights for it by "
                "`topkit train lightning --model FOLDER` and give them as weights=FILE"
            )
        else:
            reason = _lacking(indexer, first, name)
        if reason:
            reasons[indexer] = reason
    return reasons


def _lacking(indexer: Indexer, seen: Seen, name: str) -> str:
    given = {"hidden": seen.hidden, "latent": seen.latent, "rope": seen.rope and seen.rope[0]}
    there = OFFERED - {given_name for given_name, x in given.items() if x is None}
    lacking = sorted(indexer.needs - there)
    if lacking:
        return f"{indexer} needs {', '.join(lacking)}, which {name} does not hand out"
    widths = {n: x.shape[-1] for n, x in {**given, "head_dim": seen.keys}.items() if x is not None}
    for what, width in indexer.widths().items():
        if widths.get(what, width) != width:
            return f"{indexer} is made for {what} of width {width}; {name} has {widths[what]}"
    return ""
