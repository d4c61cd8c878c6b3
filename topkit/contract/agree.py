# pyright: strict, reportUnknownMemberType=false
"""When two selections are the same: by the scores of what they chose."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from topkit.contract.streams import Stream
from topkit.indexers.base import Index, Indexer, Rest, Selection
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
        require_same_rest(got.rest, want.rest, where)
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


def require_same_rest(got: Rest | None, want: Rest | None, where: str) -> None:
    """Require pseudo-keys that add the same to the output, in any order, and however many weigh nothing."""
    if got is None or want is None:
        one = got or want
        same = one is None or not _weighs(one).any()
        assert same, f"{where}: the same slots have a rest, and have none"
        return
    for ours, other in zip(_added(got), _added(want), strict=True):
        same = torch.allclose(ours, other, rtol=1e-4, atol=1e-5)
        assert same, f"{where}: the same slots have another rest"


def _added(rest: Rest) -> tuple[Tensor, Tensor]:
    """The weight of all pseudo-keys [B, Hq, Tq], as a logit or a share, and their mean value [..., Dv]."""
    if rest.share is not None:
        return rest.share.sum(-1), (rest.share[..., None] * rest.values).sum(-2)
    assert rest.logits is not None
    shares = rest.logits.softmax(-1).nan_to_num(0.0)
    return rest.logits.logsumexp(-1), (shares[..., None] * rest.values).sum(-2)


def _weighs(rest: Rest) -> Tensor:
    """Which pseudo-keys have a weight [B, Hq, Tq, r]."""
    if rest.share is not None:
        return rest.share > 0
    assert rest.logits is not None
    return rest.logits > -torch.inf


def part_of(
    selection: Selection, rows: slice = slice(None), queries: slice = slice(None)
) -> Selection:
    """What some rows and queries selected, on the host, without its cost."""

    def part(x: Tensor | None) -> Tensor | None:
        return None if x is None else x[rows, :, queries].cpu()

    slots, rest = part(selection.indices), selection.rest
    assert slots is not None
    if rest is not None:
        values = part(rest.values)
        assert values is not None
        rest = Rest(values, part(rest.logits), part(rest.share))
    return Selection(slots, part(selection.log_weights), rest)


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
