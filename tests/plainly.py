"""What slow renderings of methods are compared on: one small stream as plain arrays, and what a recipe chooses of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from topkit.contract.draw import RANDOM
from topkit.contract.streams import Stream
from topkit.indexers import Index, Indexer, Selection

LENGTH, HEADS, WIDTH = 40, (4, 2), 16

Arrays = np.ndarray[Any, Any]
Scores = Arrays | Sequence[float] | Mapping[int, float]


def stream(recipe: Indexer, seed: int, length: int = LENGTH) -> Stream:
    """One row of drawn tokens: 4 query heads, 2 KV heads, 16 dimensions."""
    return RANDOM(recipe, length=length, rows=1, heads=HEADS, seed=seed)


def uneven(recipe: Indexer, seed: int, length: int = LENGTH) -> Stream:
    """The same with a few channels that are larger, as those of real keys are."""
    one, generator = stream(recipe, seed, length), torch.Generator().manual_seed(seed)
    scale = (torch.randn(WIDTH, generator=generator) / 2).exp()
    return replace(one, queries=one.queries * scale, keys=one.keys * scale)


def arrays(one: Stream) -> tuple[Arrays, Arrays]:
    """Queries [Hq, T, D], and the keys that each query head reads [Hq, T, D], in float64."""
    queries, keys = one.queries[0].double().numpy(), one.keys[0].double().numpy()
    return queries, keys.repeat(len(queries) // len(keys), 0)


def lists(selection: Selection) -> list[list[int]]:
    """The newest token's list of each selecting head, as it comes, without -1."""
    return [[slot for slot in slots if slot >= 0] for slots in selection.indices[0, :, -1].tolist()]


def chosen(one: Stream, recipe: Indexer, index: Index, k: int) -> list[list[int]]:
    """What the newest token selects."""
    return lists(one.ask(recipe, index, k))


def best(scores: Scores, k: int | None = None, slots: Iterable[int] | None = None) -> list[int]:
    """The k slots of the greatest scores, of `slots` or of all: best first, equal ones by the lowest slot."""
    if slots is None:
        slots = scores if isinstance(scores, Mapping) else range(len(scores))
    return sorted(slots, key=lambda slot: (-scores[slot], slot))[:k]


def of_pages(scores: Sequence[float], size: int, length: int, k: int) -> list[int]:
    """The keys of the best pages, ascending; the last page that k reaches is cut to its newest keys."""
    kept: list[int] = []
    for page in best(scores):
        keys = range(page * size, min((page + 1) * size, length))
        kept += list(keys)[-max(k - len(kept), 0) :] if k > len(kept) else []
    return sorted(kept)


def softmax(logits: Arrays) -> Arrays:
    weights = np.exp(logits - logits.max())
    return weights / weights.sum()
