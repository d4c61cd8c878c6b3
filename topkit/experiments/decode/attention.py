"""The output of attention over selected keys."""

from __future__ import annotations

import torch
from torch import Tensor

from topkit.experiments.decode.driver import piece
from topkit.indexers.base import Cache, Selection
from topkit.kernels.gather_attention import PLAIN, Softmax, gather_attention


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
