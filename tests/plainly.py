"""A small stream in numpy, and what a recipe chooses of it, for renderings that share no code with recipes."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from topkit.indexers import Cache, Selection, Step
from topkit.indexers.spec import parse

Arrays = np.ndarray[Any, Any]


def drawn(seed: int, length: int, heads: int = 4, groups: int = 2, width: int = 16) -> list[Arrays]:
    """Queries [heads, length, width], keys and values [groups, length, width], of float32's numbers."""
    rng = np.random.default_rng(seed)
    shapes = ((heads, length, width), (groups, length, width), (groups, length, width))
    # A few channels are larger, as those of real keys are.
    scale = np.exp(rng.normal(size=width) / 2)
    return [(rng.normal(size=s) * scale).astype(np.float32).astype(float) for s in shapes]


def chosen(
    spec: str, queries: Arrays, keys: Arrays, values: Arrays, k: int, built: int | None = None
) -> Selection:
    """What the last query chooses, of an index built on the first `built` keys (None: all) and appended to."""
    q, k_all, v = (torch.tensor(x, dtype=torch.float32)[None] for x in (queries, keys, values))
    recipe, length = parse(spec), keys.shape[1]
    built = length if built is None else built

    def step(first: int, stop: int, **more: Any) -> Step:
        inputs = {"cache": Cache(k_all[:, :, :stop], v[:, :, :stop]), **more}
        inputs |= {"values": v[:, :, first:stop]}
        scaling = keys.shape[2] ** -0.5
        return Step(scaling=scaling, kv_heads=len(keys), inputs=inputs).given_to(recipe)

    index = recipe.build(k_all[:, :, :built], step(0, built, prefill_queries=q[:, :, :built]))
    for slot in range(built, length):
        index.append(k_all[:, :, slot : slot + 1], step(slot, slot + 1))
    return index.select(q[:, :, -1:], k, step(length - 1, length))


def lists(selection: Selection, heads: int) -> list[list[int]]:
    """The list of each query head, as it comes, without -1."""
    rows = selection.indices[0, :, 0].tolist()
    each = heads // len(rows)
    return [[slot for slot in rows[head // each] if slot >= 0] for head in range(heads)]


def best(scores: Arrays, k: int) -> list[int]:
    """The k best places, of equal ones the lowest."""
    return sorted(range(len(scores)), key=lambda place: (-scores[place], place))[:k]


def of_pages(scores: Arrays, size: int, length: int, k: int) -> list[int]:
    """The keys of the best pages, ascending; the last page that k reaches is cut to its newest keys."""
    kept: list[int] = []
    for page in best(scores, len(scores)):
        keys = range(page * size, min((page + 1) * size, length))
        kept += list(keys)[-max(k - len(kept), 0) :] if k > len(kept) else []
    return sorted(kept)
