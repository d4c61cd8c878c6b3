# pyright: strict, reportUnknownMemberType=false
"""Keys appended behind FAISS indexes that other streams share."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from topkit.indexers.growing import Growing


@dataclass
class Tail:
    """Keys as their recipe scores them, in slots from `first` on; what is written is never written over.

    Shapes: keys [B, Hk, t, D] float32; lists [B, Hk, t, 1], the list that a key stands in, -1 where the
    row's own index holds it.
    """

    first: int
    keys: Tensor
    lists: Tensor
    _growing: tuple[Growing, Growing] = field(default_factory=lambda: (Growing(), Growing()))

    @property
    def nbytes(self) -> int:
        return sum(x.untyped_storage().nbytes() for x in (self.keys, self.lists))

    def append(self, keys: Tensor, lists: Tensor) -> None:
        ours, theirs = self._growing
        self.keys, self.lists = ours.append(self.keys, keys), theirs.append(self.lists, lists)

    def until(self, slot: int) -> Tail | None:
        """The keys before a slot; None where there are none."""
        kept = slot - self.first
        if kept <= 0:
            return None
        return replace(self, keys=self.keys[:, :, :kept], lists=self.lists[:, :, :kept])

    def at(self, rows: Any) -> Tail:
        """Some of its rows, for reading alone."""
        return self if rows == slice(None) else Tail(self.first, self.keys[rows], self.lists[rows])

    def gathered(self, rows: Tensor) -> Tail:
        rows = rows.to(self.keys.device)
        return Tail(self.first, self.keys[rows], self.lists[rows])

    def fork(self) -> Tail:
        """A copy that shares its tensors; whichever writes next moves to a buffer of its own."""
        self._growing = (Growing(), Growing())
        return Tail(self.first, self.keys, self.lists)

    def scores(self, queries: Tensor, probes: Tensor | None) -> tuple[Tensor, Tensor]:
        """Scores of keys for queries [B, Hk, q, D] that searched lists [B, Hk, q, p], and which are in these.

        Both [B, Hk, q, t]; -inf where a key is in none of them.
        """
        lists = self.lists[:, :, None, :, 0]
        if probes is None:
            seen = (lists >= 0).expand(*queries.shape[:3], -1)
        else:
            seen = (lists[..., None] == probes[:, :, :, None]).any(-1)
        return torch.where(seen, queries @ self.keys.mT, -torch.inf), seen
