"""What slow renderings of methods are compared on: one small stream, as plain arrays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from topkit.contract.draw import RANDOM
from topkit.contract.streams import Stream
from topkit.indexers import Index, Indexer

LENGTH, HEADS, WIDTH = 40, (4, 2), 16


def stream(recipe: Indexer, seed: int, **how: Any) -> Stream:
    """One row of drawn tokens: 4 query heads, 2 KV heads, 16 dimensions."""
    return RANDOM(recipe, length=LENGTH, rows=1, heads=HEADS, seed=seed, **how)


def arrays(one: Stream) -> tuple[np.ndarray, np.ndarray]:
    """Queries [Hq, T, D], and the keys that each query head reads [Hq, T, D], in float64."""
    queries, keys = one.queries[0].double().numpy(), one.keys[0].double().numpy()
    return queries, keys.repeat(len(queries) // len(keys), 0)


def best(scores: np.ndarray, k: int, slots: Sequence[int] | None = None) -> list[int]:
    """The k slots of the greatest scores, best first, equal ones by the lowest slot."""
    slots = range(len(scores)) if slots is None else slots
    return sorted(slots, key=lambda slot: (-scores[slot], slot))[:k]


def softmax(logits: np.ndarray) -> np.ndarray:
    weights = np.exp(logits - logits.max())
    return weights / weights.sum()


def chosen(one: Stream, recipe: Indexer, index: Index, k: int) -> list[list[int]]:
    """What the newest token selects, a list a head, without -1."""
    lists = one.ask(recipe, index, k).indices[0, :, 0].tolist()
    return [[slot for slot in slots if slot >= 0] for slots in lists]
