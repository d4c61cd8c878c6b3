"""What renderings of FAISS's recipes share: streams, FAISS's own indexes read back, and selections compared."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch

from topkit.indexers import Step
from topkit.indexers.spec import parse

faiss: Any = pytest.importorskip("faiss")

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Asked:
    """Keys [Hk, T, D] and queries [Hq, D] of one row, `begun` keys of which were there at the build."""

    keys: Array
    queries: Array
    begun: int

    def chosen(self, spec: str, k: int) -> tuple[list[list[int]], list[Any]]:
        """What each query head chose, and FAISS's index of each KV head."""
        recipe, step = parse(spec), Step(kv_heads=len(self.keys))
        keys, queries = torch.from_numpy(self.keys)[None], torch.from_numpy(self.queries)
        index = recipe.build(keys[:, :, : self.begun], step)
        if self.begun < keys.shape[2]:
            index.append(keys[:, :, self.begun :], step)
        slots = index.select(queries[None, :, None], k, step).indices
        lists = slots[0, :, 0].repeat_interleave(len(self.queries) // slots.shape[1], 0)
        return lists.tolist(), read_back(index)

    def key_head(self, head: int) -> int:
        return head * len(self.keys) // len(self.queries)


def drawn(
    length: int = 300, width: int = 16, begun: int | None = None, seed: int = 0, far: float = 0.0
) -> Asked:
    """Two KV heads and four query heads; of keys that share an offset `far` spreads away."""
    rng = np.random.default_rng(seed)
    keys = rng.standard_normal((2, length, width)) + far * rng.standard_normal(width)
    queries = rng.standard_normal((4, width))
    return Asked(keys.astype("f4"), queries.astype("f4"), length if begun is None else begun)


def read_back(thing: Any) -> list[Any]:
    """FAISS's indexes within reach of an index, outermost ones alone, in the order of its heads."""
    found: list[Any] = []
    seen: set[int] = set()
    ahead: list[Any] = [thing]
    while ahead:
        x = ahead.pop(0)
        if id(x) in seen or isinstance(x, str | bytes | int | float | torch.Tensor | np.ndarray):
            continue
        seen.add(id(x))
        if isinstance(x, faiss.Index):
            found.append(faiss.downcast_index(x))
            found[-1].referenced_objects = [x]  # which it is a view of
        elif isinstance(x, dict):
            ahead = [*x.values(), *ahead]
        elif isinstance(x, list | tuple):
            ahead = [*x, *ahead]
        elif type(x).__module__.startswith("topkit") and hasattr(x, "__dict__"):
            ahead = [*vars(x).values(), *ahead]
    return found


def array(vector: Any) -> Array:
    """A std::vector of FAISS."""
    return np.array(faiss.vector_to_array(vector))


def codebooks(pq: Any) -> Array:
    """Centroids [pieces, 2^bits, width of a piece]."""
    return array(pq.centroids).reshape(pq.M, pq.ksub, pq.dsub).astype("f8")


def cut(vector: Array, pieces: int, width: int) -> Array:
    """A vector in pieces, zeros behind it."""
    padded = np.zeros(pieces * width)
    padded[: len(vector)] = vector
    return padded.reshape(pieces, width)


def hold(chosen: list[int], scores: dict[int, float], k: int, slack: float = 1e-4) -> None:
    """Require k keys of these scores, each once, best first, none of those left out better by `slack`."""
    there = [slot for slot in chosen if slot >= 0]
    assert len(there) == len(set(there)) == min(k, len(scores)), (chosen, len(scores))
    assert chosen[len(there) :] == [-1] * (len(chosen) - len(there))
    assert set(there) <= set(scores), set(there) - set(scores)
    told = [scores[slot] for slot in there]
    assert all(a >= b - slack for a, b in pairwise(told)), told
    if k < len(scores):
        left = max(score for slot, score in scores.items() if slot not in there)
        assert left <= min(told) + slack, (left, min(told))
