# pyright: strict
"""RetrievalAttention: a graph of keys, linked by the prompt's own queries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from topkit.indexers.base import Index, Indexer, Selection, Step
from topkit.indexers.checks import whole
from topkit.indexers.fitted import of_rows, once
from topkit.indexers.key_graph import Search, linked
from topkit.indexers.scored import masked
from topkit.indexers.stated_cost import Cost, Shape, least
from topkit.indexers.traits import Traits
from topkit.kernels.score import score
from topkit.kernels.select_topk import select_topk


@dataclass(frozen=True)
class retrieval_attention(Indexer):
    """Walks a graph of the prompt's keys, linked where its queries list them together, to the k best.

    Each of the prompt's newest `queries` queries lists its `nearest` keys; a key has at most `degree`
    neighbours. The walk begins at the keys with the most links and holds the `ef` best, or k if that is more;
    where it would hold all, all are scored. Keys since are scored all. The paper also keeps the first and
    the newest keys, as keep(..., sink=128, window=512) does.
    Departs from RoarGraph, the paper's graph: links are cut by how many queries made them, not by distance,
    and a key that no query lists is reached from the keys before and behind it.
    Source: arXiv 2409.10516, section 3.2.
    """

    degree: int = 32
    nearest: int = 100
    ef: int = 128
    queries: int = 1024

    family: ClassVar[str] = "votes"
    source: ClassVar[str] = "arXiv 2409.10516"
    cost: ClassVar[str] = "reads the keys that the walk meets, and degree links of those it passes"
    tuned: ClassVar[Mapping[str, Sequence[Any]]] = {"ef": range(1, 4097)}
    examples: ClassVar[tuple[str, ...]] = ("retrieval_attention()",)

    def __post_init__(self) -> None:
        whole(self, "degree", 3)
        whole(self, "nearest", 2)
        whole(self, "ef", 1)
        whole(self, "queries", 1)

    def traits(self) -> Traits:
        needs = frozenset({"cache", "prefill_queries"})
        return Traits(needs=needs, may_come_short=True, drifts=True)

    def costs(self, shape: Shape) -> Cost:
        s = shape
        beam = least(self.ef + s.k - least(self.ef, s.k), s.T)
        # A beam that holds all is a scan; a walk meets about eight keys for each of its beam.
        met, scan = least(8 * beam, s.T), beam / s.T
        walk = s.Hq * (met * s.D * s.e + 4 * beam * self.degree)
        return Cost(
            index=s.Hk * self.degree * (4 + 8 / s.T),
            read=(1 - scan) * walk + scan * s.T * s.key_bytes,
            operations=s.Hq * s.D * ((1 - scan) * met + scan * s.T),
            build=s.Hq * least(self.queries, s.T) * s.T * s.D,
            append=0,
            lists=s.Hq,
            kept=s.kept,
            estimated=True,
        )

    def builds_as(self) -> Indexer:
        return replace(self, ef=1)

    def build(self, keys: Tensor, step: Step) -> Index:
        newest = step.prefill_queries[:, :, -self.queries :].detach()
        table = linked(newest, keys.detach(), self.nearest, self.degree, step)
        return KeyGraph(self, keys.shape[2], table, _entries(table, step))


@dataclass
class KeyGraph(Index):
    """Neighbours of the keys at build [B, Hk, T, degree], and where walks begin [B, Hk, e]."""

    recipe: retrieval_attention
    slots: int
    table: Tensor
    entries: Tensor

    @property
    def length(self) -> int:
        return self.slots

    @property
    def nbytes(self) -> int:
        """What each row alone would hold."""
        return sum(x.numel() * x.element_size() for x in (self.table, self.entries))

    def append(self, keys: Tensor, step: Step) -> None:
        self.slots += keys.shape[2]

    def truncate(self, length: int, step: Step) -> None:
        self.slots = length
        if length < self.table.shape[2]:
            kept = self.table[:, :, :length]
            self.table, self.entries = (
                once(x, lambda x: x.masked_fill(x >= length, -1)) for x in (kept, self.entries)
            )

    def reorder(self, rows: Tensor) -> None:
        self.table, self.entries = (of_rows(x, rows) for x in (self.table, self.entries))

    def fork(self) -> Index:
        return replace(self)

    def select(self, queries: Tensor, k: int, step: Step) -> Selection:
        known, cache = self.table.shape[2], step.cache
        beam = max(self.recipe.ef, k)
        seen = step.seen(self.slots, queries.shape[2], queries.device)
        key = cache.key_bytes // cache.heads
        if beam >= known:
            scores = masked(score(queries, cache.until(self.slots).keys), step)
            slots = select_topk(scores, k, backend="torch")
            return Selection(slots, keys_scored=seen, bytes_read=seen * cache.key_bytes)
        visible = step.visible(self.slots, queries.shape[2], queries.device)
        among = None if visible is None else visible[..., :known]
        walk = Search(queries, cache.until(known).keys, self.table, among, beam)
        slots, scores, met, passed = walk.run(self.entries)
        newer, tail = self._newer(queries, visible, step)
        slots, scores = torch.cat([slots, newer], -1), torch.cat([scores, tail], -1)
        since = (seen - known).clamp_min(0)
        link = self.table.element_size() * self.table.shape[3]
        return Selection(
            select_topk(scores, k, slots=slots, backend="torch"),
            keys_scored=met.float().mean(1) + since,
            bytes_read=met.sum(1) * key + passed.sum(1) * link + since * cache.key_bytes,
        )

    def _newer(self, queries: Tensor, visible: Tensor | None, step: Step) -> tuple[Tensor, Tensor]:
        """The slots behind the graph [B, Hq, Tq, n], -1 where they are not seen, and their scores."""
        known = self.table.shape[2]
        tail = score(queries, step.cache.until(self.slots).since(known))
        slots = torch.arange(known, self.slots, device=tail.device).expand_as(tail)
        if visible is None:
            return slots, tail
        unseen = ~visible[..., known:]
        return slots.masked_fill(unseen, -1), tail.masked_fill(unseen, -torch.inf)


def _entries(table: Tensor, step: Step) -> Tensor:
    """The keys with the most links [B, Hk, e], of a row's own."""
    links = (table >= 0).sum(-1).float()
    slots = torch.arange(links.shape[2], device=links.device)
    padding = slots < step.starts(links.device)[:, None, None]
    return select_topk(links.masked_fill(padding, -torch.inf), table.shape[3], backend="torch")
