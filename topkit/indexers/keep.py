"""Forced keys: attention sinks and the latest tokens."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from topkit.indexers.base import Index, Selection, Step
from topkit.indexers.checks import whole
from topkit.indexers.combinator import Combinator
from topkit.indexers.compact import compact
from topkit.indexers.streaming_llm import ends


@dataclass(frozen=True)
class keep(Combinator):
    """Forces the first `sink` and the newest `window` keys; base fills what they leave of k."""

    sink: int = 0
    window: int = 0

    source: ClassVar[str] = "arXiv 2309.17453"
    cost: ClassVar[str] = "as base"
    examples: ClassVar[tuple[str, ...]] = (
        "keep(sign(), sink=2, window=3)",
        "keep(refine(sign(), factor=2), sink=4)",
        "keep(shared(exact()), window=30)",
        "keep(quest(page_size=4), sink=1, window=2)",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        whole(self, "sink", 0)
        whole(self, "window", 0)

    def choose(self, index: Index, queries: Tensor, k: int, step: Step) -> Selection:
        chosen = index.select(queries, k, step.given_to(self.base))
        length, count, width = index.length, queries.shape[2], chosen.indices.shape[-1]
        forced = ends(step, length, count, self.sink, self.window, width, queries.device)
        first = step.starts(queries.device)[:, None, None, None]
        stop = step.stops(length, count, queries.device).clamp_max(length)[:, None, :, None]
        twice = (chosen.indices < first + self.sink) | (chosen.indices >= stop - self.window)
        others = chosen.indices.masked_fill(twice, -1)
        forced = forced.expand(*others.shape[:-1], -1)
        return replace(chosen, indices=compact(torch.cat([forced, others], -1), width))
