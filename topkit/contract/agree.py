# pyright: strict, reportUnknownMemberType=false
"""When two selections are the same: by the scores of what they chose."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from topkit.contract.streams import Stream
from topkit.indexers.base import Index, Indexer, Selection
from topkit.kernels.score import score


def agree(
    indexer: Indexer, one: Stream, index: Index, got: Selection, want: Selection, where: str
) -> None:
    """Require the same slots and weights, or slots of equal scores, of the index's last query.

    Raises: AssertionError that says where, which row and which head.
    """
    heads = one.queries.shape[1]
    width = max(got.indices.shape[-1], want.indices.shape[-1])
    (a, weights_a), (b, weights_b) = (_ordered(x, heads, width) for x in (got, want))
    if torch.equal(a, b):
        same = torch.allclose(weights_a, weights_b, atol=1e-5)
        assert same, f"{where}: the same slots have other log-weights"
        return
    scores = _scores(indexer, one, index)
    at_a, at_b = (
        scores.gather(-1, x.clamp_min(0)).masked_fill(x < 0, -1e9).sort(-1).values for x in (a, b)
    )
    off = ((at_a - at_b).abs() > 1e-5 * scores.abs().amax(-1, keepdim=True)).any(-1)
    if off.any():
        row, head, query = map(int, off.nonzero()[0])
        raise AssertionError(
            f"{where}: row {row}, head {head} chose {a[row, head, query].tolist()}; "
            f"expected {b[row, head, query].tolist()}"
        )


def _ordered(selection: Selection, heads: int, width: int) -> tuple[Tensor, Tensor]:
    """Ascending slots and their log-weights [B, Hq, Tq, width] float32."""
    slots, weights = selection.indices, selection.log_weights
    weights = torch.zeros(slots.shape) if weights is None else weights.float()
    times, short_of = heads // slots.shape[1], width - slots.shape[-1]
    slots, order = pad(slots.repeat_interleave(times, 1), (0, short_of), value=-1).sort(-1)
    return slots, pad(weights.repeat_interleave(times, 1), (0, short_of)).gather(-1, order)


def _scores(indexer: Indexer, one: Stream, index: Index) -> Tensor:
    """What the recipe itself thinks of the keys, or else their dot products [B, Hq, 1, T]."""
    last = slice(index.length - 1, index.length)
    queries = one.queries[:, :, last]
    if not indexer.traits().score_all:
        return score(queries, one.keys[:, :, : index.length])
    scores = index.score(queries, one.step(indexer, last, index.length)).float()
    return scores.repeat_interleave(queries.shape[1] // scores.shape[1], 1)
