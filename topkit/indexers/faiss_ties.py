# pyright: strict, reportUnknownMemberType=false
"""Equal scores by the lowest slot: FAISS keeps any of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch

from topkit.indexers.faiss_base import Hits

# Keys that are searched for beyond those that are wanted, to see whether the last of these is tied.
BEYOND = 16


def settled(search: Callable[[int], Hits], n: int, most: int) -> Hits:
    """The best n of `most` keys, or some more, by score and then by id: what `search` gives of so many."""
    wide = n + BEYOND
    hits = search(min(wide, most))
    while wide < most and _is_open(hits, n):
        wide *= 2
        hits = search(min(wide, most))
    return ordered(hits)


def _is_open(hits: Hits, n: int) -> bool:
    """Whether keys that were not given may score as the n-th does."""
    scores, ids = hits.scores.numpy(), hits.ids.numpy()
    return bool(((scores[:, -1] == scores[:, n - 1]) & (ids[:, -1] >= 0)).any())


def ordered(hits: Hits) -> Hits:
    """By score, and then by id."""
    scores = hits.scores.numpy()
    if not (scores[:, 1:] == scores[:, :-1]).any():
        return hits
    # Ids of -1 have the least of all scores.
    order = np.lexsort((hits.ids.numpy(), -scores))
    by_score = torch.from_numpy(order)
    return replace(hits, scores=hits.scores.gather(1, by_score), ids=hits.ids.gather(1, by_score))
