"""The output of attention: over selected keys, or over all that a query sees."""

from __future__ import annotations

import torch
from torch import Tensor

from topkit.experiments.decode.driver import piece
from topkit.indexers.base import Cache, Selection, Step
from topkit.kernels.gather_attention import PLAIN, Softmax, gather_attention
from topkit.kernels.score import score


def sparse_attention(
    queries: Tensor,
    cache: Cache,
    selection: Selection,
    scaling: float,
    backend: str = "auto",
    softmax: Softmax = PLAIN,
) -> Tensor:
    """The attention output [B, Hq, Tq, Dv] of queries over the keys that they selected."""
    assert cache.values is not None
    rest = selection.rest
    options = {
        "log_weights": selection.log_weights,
        "rest_values": None if rest is None else rest.values,
        "rest_logits": None if rest is None else rest.logits,
        "rest_share": None if rest is None else rest.share,
    }
    count, outputs = queries.shape[2], []
    # The keys that a query selected are gathered side by side.
    width = piece(queries, selection.indices.shape[-1] * queries.shape[3])
    for first in range(0, count, width):
        part = slice(first, first + width)
        own = {name: None if x is None else x[:, :, part] for name, x in options.items()}
        output = gather_attention(
            queries[:, :, part],
            cache.keys,
            cache.values,
            selection.indices[:, :, part],
            scaling=scaling,
            backend=backend,
            softmax=softmax,
            **own,
        )
        outputs.append(output)
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs, 2)


def dense_attention(
    queries: Tensor, cache: Cache, scaling: float, window: int | None = None
) -> Tensor:
    """The attention output [B, Hq, Tq, Dv] of the queries of the newest slots over all that they see.

    A window leaves each query the newest so many slots.
    """
    assert cache.values is not None
    length, count = cache.keys.shape[2], queries.shape[2]
    slots = torch.arange(length, device=queries.device)
    stops = Step().stops(length, count, queries.device)[0]
    hidden = slots >= stops[:, None]
    if window is not None:
        hidden |= slots < stops[:, None] - window
    width = piece(queries, length)
    outputs = []
    for first in range(0, count, width):
        part = slice(first, first + width)
        logits = scaling * score(queries[:, :, part], cache.keys)
        weights = logits.masked_fill_(hidden[part], float("-inf")).softmax(-1)
        by_group = weights.unflatten(1, (cache.values.shape[1], -1)).flatten(2, 3)
        summed = by_group @ cache.values.float()
        outputs.append(summed.unflatten(2, (-1, weights.shape[2])).flatten(1, 2))
    return torch.cat(outputs, 2).to(queries.dtype)
