# pyright: strict, reportUnknownMemberType=false
"""FAISS flat: every key compared, as FAISS compares them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, cast

import torch
from torch import Tensor

from topkit.grammar import later
from topkit.indexers.base import Index, Step
from topkit.indexers.faiss_base import Hits, import_faiss, plain
from topkit.indexers.faiss_gpu import best_on_gpu, placed, require_device
from topkit.indexers.faiss_threads import each
from topkit.indexers.faiss_ties import settled
from topkit.indexers.scored import Codes, Scored, ScoredIndex
from topkit.indexers.stated_cost import Shape
from topkit.indexers.traits import Traits
from topkit.kernels.score import score


@dataclass(frozen=True)
class faiss_flat(Scored):
    """Keeps the largest inner products of all keys, which it holds in float32, by FAISS's own search.

    device="cuda": the keys stay on the GPU, where faiss-gpu reads them; at most 2,048 keys are chosen there.
    Source: FAISS IndexFlatIP (arXiv 2401.08281, section 5.1).
    """

    device: str = later("cpu")

    family: ClassVar[str] = "oracle"
    source: ClassVar[str] = "FAISS, arXiv 2401.08281"
    cost: ClassVar[str] = "reads every key in float32"
    requires: ClassVar[str] = "faiss"

    def __post_init__(self) -> None:
        require_device(self)

    def traits(self) -> Traits:
        return Traits(score_all=True, host=self.device == "cpu")

    def code_bytes(self, shape: Shape) -> float:
        return 4 * shape.Hk * shape.D

    def build(self, keys: Tensor, step: Step) -> Index:
        index = _Flat(self, faiss=import_faiss(self.device))
        index.append(keys, step)
        return index

    def encode(self, keys: Tensor, step: Step) -> Codes:
        return {"keys": placed(keys, self.device == "cuda").contiguous()}

    def score(self, queries: Tensor, codes: Codes, step: Step) -> Tensor:
        return score(placed(queries, self.device == "cuda"), codes["keys"]).to(queries.device)

    def pick(
        self, queries: Tensor, codes: Codes, k: int, step: Step, pool: str | None = None
    ) -> Tensor:
        if pool is not None:  # of scores that FAISS does not pool
            return super().pick(queries, codes, k, step, pool)
        keys, vectors = codes["keys"], placed(queries, self.device == "cuda")
        rows, heads, length = keys.shape[:3]
        grouped = vectors.view(rows, heads, -1, *vectors.shape[2:])
        chosen = torch.full((*grouped.shape[:4], min(k, length)), -1, device=vectors.device)
        starts: list[int] = [0] * rows
        if step.start is not None:
            starts = cast(list[int], step.start.expand(rows).tolist())
        stops = cast(
            list[list[int]], step.stops(length, queries.shape[2]).expand(rows, -1).tolist()
        )
        faiss = import_faiss(self.device)

        def search(job: tuple[int, int, int]) -> None:
            row, head, query = job
            start, stop = starts[row], stops[row][query]
            if start < stop:
                best = min(k, stop - start)
                own = grouped[row, head, :, query].contiguous()
                ids = self._best(faiss, own, keys[row, head, start:stop], best)
                chosen[row, head, :, query, :best] = torch.where(ids < 0, ids, ids + start)

        jobs = [
            (row, head, query)
            for row in range(rows)
            for head in range(heads)
            for query in range(queries.shape[2])
        ]
        each(faiss, search, jobs, 0 if vectors.is_cuda else vectors.numel() * length)
        return chosen.flatten(1, 2).to(queries.device)

    def _best(self, faiss: Any, queries: Tensor, keys: Tensor, k: int) -> Tensor:
        """The best k of keys [n, D] for queries [q, D]."""
        if queries.is_cuda:
            return best_on_gpu(self, faiss, queries, keys, k)
        vectors, stored = plain(queries), plain(keys)

        def search(n: int) -> Hits:
            scores, ids = faiss.knn(vectors, stored, n, faiss.METRIC_INNER_PRODUCT)
            return Hits.of(scores, ids, len(stored))

        return settled(search, k, len(stored)).ids[:, :k]


@dataclass
class _Flat(ScoredIndex):
    """Codes that FAISS reads, not torch."""

    faiss: Any = field(kw_only=True)

    def reorder(self, rows: Tensor) -> None:
        super().reorder(rows.to(self.codes["keys"].device))
