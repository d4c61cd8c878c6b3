"""What was judged of a batch, put together from pieces: of some rows, and some of the queries."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from math import nan

import torch
from torch import Tensor

from topkit.experiments.runs.judged import Judged


@dataclass
class Board:
    """The columns of `rows` rows and `count` queries, by level and layer.

    Rows may come in any pieces: how many are judged at once is a matter of speed.
    """

    rows: int
    count: int
    # (level, layer) -> columns [C, B, H, Tq] of all rows, NaN where nothing was judged, and of which they are.
    columns: dict[tuple[str, int], Tensor] = field(default_factory=dict)
    judged: dict[tuple[str, int], set[int]] = field(default_factory=dict)
    names: list[str] = field(default_factory=list)

    def note(self, layer: int, numbers: Sequence[int], first: int, judged: Judged) -> None:
        """Put down what was judged of some rows, by number, and queries from `first` on."""
        place = judged.level, layer
        self.names = self.names or list(judged.columns)
        _, heads, count = judged.columns[self.names[0]].shape
        like = judged.columns["recall"]
        if place not in self.columns:
            shape = len(self.names), self.rows, heads, self.count
            self.columns[place] = like.new_full(shape, nan, dtype=torch.float64)
        rows = torch.tensor(numbers, device=like.device)
        block = torch.stack([judged.columns[name].double() for name in self.names])
        self.columns[place][:, rows, :, first : first + count] = block
        self.judged.setdefault(place, set()).update(numbers)

    def stacks(self) -> Iterator[tuple[list[int], list[int], Judged]]:
        """Rows, layers, and what was judged of these [L B, H, Tq], layer by layer, on the CPU."""
        kinds: dict[tuple[str, tuple[int, ...]], list[int]] = {}
        for (level, layer), numbers in self.judged.items():
            kinds.setdefault((level, tuple(sorted(numbers))), []).append(layer)
        for (level, numbers), layers in sorted(kinds.items()):
            every = [self.columns[level, layer] for layer in sorted(layers)]
            # From a GPU as one block.
            block = torch.stack(every, 1)[:, :, list(numbers)].cpu().flatten(1, 2)
            columns = dict(zip(self.names, block, strict=True))
            columns["trivial"] = columns["trivial"] > 0
            yield list(numbers), sorted(layers), Judged(level, level, columns)
