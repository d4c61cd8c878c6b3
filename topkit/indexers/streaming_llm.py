# pyright: strict
"""StreamingLLM: the first tokens and the latest ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from topkit.indexers.base import Selection, Step
from topkit.indexers.checks import whole
from topkit.indexers.stated_cost import Cost, Shape, least
from topkit.indexers.stateless import Stateless
from topkit.indexers.traits import Traits, as_written
from topkit.kernels.force_ends import ends_first


@dataclass(frozen=True)
class streaming_llm(Stateless):
    """Keeps the first `sink` and the newest `window` keys, and gives up all between them.

    window=None takes what k leaves. Sinks come first where k does not hold both.
    Source: arXiv 2309.17453, section 3.2.
    """

    sink: int = 4
    window: int | None = None

    family: ClassVar[str] = "window"
    source: ClassVar[str] = "arXiv 2309.17453"
    cost: ClassVar[str] = "reads nothing"
    examples: ClassVar[tuple[str, ...]] = (
        "streaming_llm()",
        "streaming_llm(sink=2, window=3)",
        "streaming_llm(sink=0, window=5)",
    )

    def __post_init__(self) -> None:
        whole(self, "sink", 0)
        if self.window is not None:
            whole(self, "window", 1)

    def traits(self) -> Traits:
        bounded = self.window is not None
        fixed = as_written(self, streaming_llm, "choose")
        return Traits(exhaustive=not bounded, may_come_short=bounded, fixed=fixed)

    def costs(self, shape: Shape) -> Cost:
        most = shape.T if self.window is None else self.sink + self.window
        return Cost(lists=shape.Hk, kept=least(shape.kept, most))

    def choose(self, queries: Tensor, k: int, step: Step, length: int) -> Selection:
        width = min(k, length)
        window = width if self.window is None else self.window
        if step.at is not None and step.stop is not None:
            nothing = torch.empty(len(queries), 1, 1, 0, dtype=torch.int64, device=queries.device)
            seen: dict[str, Any] = {"start": step.start, "stop": step.stop, "backend": step.backend}
            return Selection(ends_first(nothing, width, self.sink, window, **seen))
        slots = ends(step, length, queries.shape[2], self.sink, window, width, queries.device)
        return Selection(slots.expand(queries.shape[0], -1, -1, -1))


def ends(
    step: Step,
    length: int,
    count: int,
    sink: int,
    window: int,
    width: int,
    device: torch.device | None = None,
) -> Tensor:
    """The first `sink` visible slots, then the newest `window`, newest first.

    Shapes: -> [B or 1, 1, count, width], cut to width; -1 last.
    """
    place = torch.arange(width, device=device)
    first = step.starts(device)[:, None, None]
    stop = step.stops(length, count, device).clamp_max(length)[..., None]
    slots = torch.where(place < sink, first + place, stop - 1 - (place - sink))
    least = torch.where(place < sink, first, first + sink)
    there = (slots >= least) & (slots < stop) & (place < sink + window)
    return slots.masked_fill(~there, -1)[:, None]
