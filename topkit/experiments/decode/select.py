"""From keys and queries to selections, and from selections to the output of attention."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from topkit.indexers.base import Cache, Index, Indexer, Selection, Step
from topkit.kernels.gather_attention import gather_attention
from topkit.kernels.score import score

# Floats of scores, or of gathered keys, that one call may make: more queries go in pieces.
PIECE = 1 << 25


def select_each(
    indexer: Indexer,
    index: Index,
    k: int,
    queries: Tensor,
    keys: Tensor,
    cache: Cache,
    inputs: Mapping[str, Any],
    step: Step,
) -> Iterator[tuple[slice, Selection, Tensor]]:
    """Take in keys and ask their queries, in pieces: place among the queries, selection, stops [t].

    The queries, keys and inputs are of the newest tokens of the cache; `step` lacks the inputs.
    """
    length, count = cache.keys.shape[2], queries.shape[2]
    stops = torch.arange(length - count + 1, length + 1, device=queries.device)

    def at(now: Cache, asked: slice, stop: Tensor | None) -> Step:
        given = {name: tokens(x, asked) for name, x in inputs.items()}
        return replace(step, stop=stop, inputs={"cache": now, **given}).given_to(indexer)

    causal = indexer.traits().causal_codes
    if causal:
        index.append(keys, at(cache, slice(None), None))
    # A code that has seen the next key would let the future in: one key, then one query.
    width = _piece(queries, length, k) if causal else 1
    for first in range(0, count, width):
        asked = slice(first, min(first + width, count))
        now = cache if causal else _until(cache, length - count + asked.stop)
        stop = stops[None, asked] if causal and count > 1 else None
        here = at(now, asked, stop)
        if not causal:
            index.append(keys[:, :, asked], here)
        yield asked, index.select(queries[:, :, asked], k, here), stops[asked]


def attend_chosen(
    queries: Tensor, cache: Cache, chosen: Selection, scaling: float, backend: str = "auto"
) -> Tensor:
    """The attention output [B, Hq, Tq, Dv] of queries over what they chose."""
    rest = chosen.rest
    return gather_attention(
        queries,
        cache.keys,
        cache.values,  # type: ignore[arg-type]
        chosen.indices,
        scaling=scaling,
        log_weights=chosen.log_weights,
        rest_values=None if rest is None else rest.values,
        rest_logits=None if rest is None else rest.logits,
        rest_share=None if rest is None else rest.share,
        backend=backend,
    )


def dense_attention(
    queries: Tensor, cache: Cache, stops: Tensor, scaling: float, window: int | None = None
) -> Tensor:
    """The attention output [B, Hq, Tq, Dv] of queries over all slots before their stops [Tq].

    A window leaves each query the newest so many slots.
    """
    assert cache.values is not None
    slots = torch.arange(cache.keys.shape[2], device=queries.device)
    hidden = slots >= stops[:, None]
    if window is not None:
        hidden |= slots < stops[:, None] - window
    width = _piece(queries, len(slots), 1)
    outputs = []
    for first in range(0, queries.shape[2], width):
        part = slice(first, first + width)
        logits = scaling * score(queries[:, :, part], cache.keys)
        weights = logits.masked_fill_(hidden[part], float("-inf")).softmax(-1)
        by_group = weights.unflatten(1, (cache.values.shape[1], -1)).flatten(2, 3)
        summed = by_group @ cache.values.float()
        outputs.append(summed.unflatten(2, (-1, weights.shape[2])).flatten(1, 2))
    return torch.cat(outputs, 2).to(queries.dtype)


def _piece(queries: Tensor, length: int, k: int) -> int:
    """How many queries to ask at once."""
    rows, heads, _, width = queries.shape
    return max(1, PIECE // (rows * heads * max(length, k * width)))


def _until(cache: Cache, stop: int) -> Cache:
    assert cache.values is not None
    return Cache(cache.keys[:, :, :stop], cache.values[:, :, :stop])


def tokens(given: Any, asked: slice) -> Any:
    """An input's tokens: hidden states [B, t, C], values [B, Hk, t, Dv], or a pair of angles."""
    if isinstance(given, tuple):
        return tuple(tokens(x, asked) for x in given)
    return given[..., asked, :]
