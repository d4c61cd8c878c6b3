# pyright: strict
"""What a model's own indexer chose."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from topkit.indexers.base import Selection, Step
from topkit.indexers.stateless import Stateless
from topkit.indexers.traits import Traits
from topkit.kernels.compact import compact


@dataclass(frozen=True)
class native(Stateless):
    """Keeps what the model's own indexer lists, best first, and no more: one list a layer.

    At the model's own number of keys (`index_topk`), or beyond, it is the model as it is; at a smaller k
    the best of each list. Of models of DeepSeek's sparse attention and its kin alone: docs/models.md.
    Source: DeepSeek-V3.2-Exp report, section 2.1 (arXiv 2512.02556); lists that layers share, IndexCache,
    arXiv 2603.12201.
    """

    family: ClassVar[str] = "trained"
    source: ClassVar[str] = "arXiv 2512.02556"
    cost: ClassVar[str] = "what the model's own indexer reads is not counted"

    def traits(self) -> Traits:
        return Traits(needs=frozenset({"native"}), exhaustive=False, may_come_short=True)

    def choose(self, queries: Tensor, k: int, step: Step, length: int) -> Selection:
        slots = step.native[:, None].long()
        stops = step.stops(length, queries.shape[2], slots.device)[:, None, :, None]
        # Lists longer than what a query sees are filled with slots that it does not.
        seen = (slots < stops) & (slots >= step.starts(slots.device)[:, None, None, None])
        return Selection(compact(slots.where(seen, -1), min(k, length)))
