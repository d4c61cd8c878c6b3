# pyright: strict
"""Codes of keys that are transformed by what was fitted at the build, and queries transformed to match."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor

from topkit.indexers.base import Selection, Step
from topkit.indexers.candidates import Candidates
from topkit.indexers.scored import ScoredIndex


@dataclass
class FittedIndex(ScoredIndex):
    """Codes of keys transformed by `of_keys`, scored for queries transformed by `of_queries`.

    The attributes named in `fitted`, tensors [B, ...] or None, are fitted at the build and never change;
    they count as bytes of the index and are gathered with its rows. A query reads those named in
    `read_by_queries`.
    """

    fitted: ClassVar[tuple[str, ...]] = ()
    read_by_queries: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def of_keys(self, keys: Tensor) -> Tensor:
        """Keys [B, Hk, t, D] as the recipe encodes them [B, Hk, t, W]."""

    @abstractmethod
    def of_queries(self, queries: Tensor) -> Tensor:
        """Queries [B, Hq, Tq, D] as the recipe scores codes for them [B, Hq, Tq, V]."""

    @property
    def nbytes(self) -> int:
        return super().nbytes + self._bytes(self.fitted)

    def _bytes(self, names: tuple[str, ...]) -> int:
        parts = (getattr(self, name) for name in names)
        return sum(x.numel() * x.element_size() for x in parts if x is not None)

    def append(self, keys: Tensor, step: Step) -> None:
        super().append(self.of_keys(keys), step)

    def reorder(self, rows: Tensor) -> None:
        super().reorder(rows)
        for name in self.fitted:
            x: Tensor | None = getattr(self, name)
            setattr(self, name, None if x is None else of_rows(x, rows))

    def score(self, queries: Tensor, step: Step) -> Tensor:
        return super().score(self.of_queries(queries), step)

    def visible_scores(self, queries: Tensor, step: Step, pool: str | None = None) -> Tensor:
        return super().visible_scores(self.of_queries(queries), step, pool)

    def candidates(self, queries: Tensor, k: int, step: Step) -> Candidates:
        found = super().candidates(queries, k, step)
        if not step.counted:
            return found
        return replace(found, bytes_read=found.bytes_read + self.read_bytes)

    def chosen(self, queries: Tensor, k: int, step: Step, pool: str | None = None) -> Selection:
        chosen = super().chosen(self.of_queries(queries), k, step, pool)
        if not step.counted:
            return chosen
        return replace(chosen, bytes_read=chosen.bytes_read + self.read_bytes)

    @property
    def read_bytes(self) -> int:
        """Bytes of what was fitted that the queries of a row read."""
        parts = (getattr(self, name) for name in self.read_by_queries)
        return sum(x[0].numel() * x.element_size() for x in parts if x is not None and len(x))


def of_rows(x: Tensor, rows: Tensor) -> Tensor:
    """Of a tensor [B, ...] that nobody writes to: row i becomes what row rows[i] was; rows that are all one are held once."""
    return x[:1].expand(len(rows), *x.shape[1:]) if _all_one(x) else x[rows]


def once(x: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
    """What `change` makes of a tensor [B, ...], row by row; of rows that are all one it is made once."""
    return change(x[:1]).expand(len(x), *x.shape[1:]) if _all_one(x) else change(x)


def _all_one(x: Tensor) -> bool:
    return len(x) == 1 or x.stride(0) == 0
