"""Work of the host beside a GPU that replays."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

# Gives a tensor, or what waits for it.
Run = Callable[[], Any]


def side_by_side(runs: Sequence[Run], device: torch.device) -> list[Tensor]:
    """What some runs give: the first, which its host does not wait for, while the others go on."""
    if len(runs) == 1 or device.type != "cuda":
        return [_finished(run()) for run in runs]
    current, side = torch.cuda.current_stream(), _side(device)
    ready = current.record_event()
    begun = runs[0]()
    side.wait_event(ready)
    with torch.cuda.stream(side):
        given = [_finished(run()) for run in runs[1:]]
    current.wait_stream(side)
    return [_finished(begun), *given]


def _finished(given: Tensor | Callable[[], Tensor]) -> Tensor:
    return given if isinstance(given, Tensor) else given()


@cache
def _side(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)
