# pyright: strict, reportUnknownMemberType=false
"""The tie rule on FAISS's hits: equal scores by the lowest slot, where FAISS keeps any of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch

from topkit.indexers.faiss_base import Hits

# Hits beyond those that are wanted, which show whether the last of these is tied.
BEYOND = 16


def settled(search: Callable[[int], Hits], n: int, most: int) -> Hits:
    """The best n of an index of `most` keys, by score and then by id; `search` gives a number of hits."""
    wide = n + BEYOND
    hits = search(min(wide, most))
    while wide < most and _is_open(hits, n):
        wide *= 2
        hits = search(min(wide, most))
    return ordered(hits, n)


def _is_open(hits: Hits, n: int) -> bool:
    """Whether keys beyond these hits may score as the n-th does."""
    scores, ids = hits.scores.numpy(), hits.ids.numpy()
    return bool(((scores[:, -1] == scores[:, n - 1]) & (ids[:, -1] >= 0)).any())


def ordered(hits: Hits, n: int) -> Hits:
    """The first n by score, and then by id."""
    scores = hits.scores.numpy()
    if (scores[:, 1:] == scores[:, :-1]).any():
        # Ids of -1 have the lowest score of all, and stay last.
        order = torch.from_numpy(np.lexsort((hits.ids.numpy(), -scores))[:, :n])
        return replace(hits, scores=hits.scores.gather(1, order), ids=hits.ids.gather(1, order))
    return replace(hits, scores=hits.scores[:, :n], ids=hits.ids[:, :n])
