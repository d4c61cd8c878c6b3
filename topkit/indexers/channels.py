# pyright: strict
"""The family "score every key over fewer channels"."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from topkit.errors import InputError
from topkit.indexers.base import Index, Selection, Step
from topkit.indexers.calibration import read
from topkit.indexers.scored import Codes, Scored, ScoredIndex
from topkit.indexers.stated_cost import Cost, Shape
from topkit.indexers.traits import Traits
from topkit.kernels.score import score


@dataclass(frozen=True)
class Channels(Scored):
    """A recipe that scores keys over `channels` of their dimensions: a number of them, or a share."""

    channels: int | float = 0.25

    family: ClassVar[str] = "channels"
    tuned: ClassVar[Mapping[str, Sequence[Any]]] = {"channels": range(1, 1025)}

    def __post_init__(self) -> None:
        most = self.channels
        whole = type(most) is int and most >= 1
        if not whole and not (type(most) is float and 0 < most < 1):
            raise InputError(
                f"{type(self).__name__}: channels must be a whole number of at least 1, or a share of the "
                f"head's dimensions between 0 and 1, as 0.25; got {most!r}"
            )

    def count(self, width: float) -> int:
        """How many of `width` channels are kept. Raises: InputError where there are fewer."""
        kept = self.channels
        if type(kept) is float:
            return math.ceil(kept * width)
        if type(kept) is not int:
            raise TypeError("channels has no formula: a number and a share are counted differently")
        if type(width) in (int, float) and kept > width:
            raise InputError(
                f"{self} keeps {kept} channels, and keys have {width} dimensions; give at most {width}, or a "
                "share such as 0.25"
            )
        return kept


@dataclass(frozen=True)
class Calibrated(Channels):
    """Channels that were chosen once, of a file of calibration or, without one, of the keys at build.

    A choice of the keys at build stays for the stream. Such recipes drift, since more keys would have
    chosen others.
    """

    calibration: str = ""

    # What a file of calibration calls this method's map of a layer.
    table: ClassVar[str] = ""
    remedy: ClassVar[str] = (
        "calibrate on a capture of it by `topkit calibrate`, and give that as calibration=FILE"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.calibration:
            read(self.calibration, type(self).__name__, self.table)

    def traits(self) -> Traits:
        return Traits(score_all=True, fixed=True, drifts=not self.calibration)

    def files(self) -> tuple[Path, ...]:
        return (Path(self.calibration),) if self.calibration else ()

    def models(self) -> frozenset[str]:
        if not self.calibration:
            return frozenset()
        return read(self.calibration, type(self).__name__, self.table).models

    def widths(self) -> dict[str, int]:
        if not self.calibration:
            return {}
        return {"head_dim": read(self.calibration, type(self).__name__, self.table).head_dim}

    def table_bytes(self, shape: Shape) -> float:
        """Bytes of the map of a layer, which every step reads."""
        raise NotImplementedError(f"{type(self).__name__}.table_bytes")

    def code_bytes(self, shape: Shape) -> float:
        return shape.Hk * self.count(shape.D) * shape.e

    def costs(self, shape: Shape) -> Cost:
        cost, table = super().costs(shape), self.table_bytes(shape)
        read, operations = cost.read + table, shape.Hq * shape.T * self.count(shape.D)
        return replace(cost, index=cost.index + table / shape.T, read=read, operations=operations)

    def learn(self, keys: Tensor, step: Step) -> Tensor:
        """The map [B, Hk, ...] of keys [B, Hk, T, D], all channels, the best first; padding left out."""
        raise NotImplementedError(f"{type(self).__name__}.learn")

    def leading(self, table: Tensor, count: int) -> Tensor:
        """The first `count` channels of a map [B, Hk, ...]."""
        raise NotImplementedError(f"{type(self).__name__}.leading")

    def through(self, vectors: Tensor, table: Tensor) -> Tensor:
        """Vectors [B, H, t, D] over the channels of a map [B, H, ...]: [B, H, t, r]."""
        raise NotImplementedError(f"{type(self).__name__}.through")

    def build(self, keys: Tensor, step: Step) -> Index:
        count = self.count(keys.shape[3])
        if self.calibration:
            filed = self.calibrated(step.layer, keys)
            table = filed.expand(len(keys), *filed.shape)
        else:
            table = self.learn(keys.detach(), step)
        index = ChannelIndex(self, table=self.leading(table, count).contiguous())
        index.append(keys, step)
        return index

    def calibrated(self, layer: int, keys: Tensor) -> Tensor:
        """The file's map of a layer [Hk, ...]. Raises: InputError for a layer or keys that it is not for."""
        return read(self.calibration, type(self).__name__, self.table).layer(layer, keys)

    def encode(self, keys: Tensor, step: Step) -> Codes:
        return {"kept": keys}

    def score(self, queries: Tensor, codes: Codes, step: Step) -> Tensor:
        return score(queries, codes["kept"])


@dataclass
class ChannelIndex(ScoredIndex):
    """Codes of keys through a map [B, Hk, ...] that never changes; queries go through it too."""

    table: Tensor = field(kw_only=True)

    @property
    def nbytes(self) -> int:
        return super().nbytes + self.table.untyped_storage().nbytes()

    def append(self, keys: Tensor, step: Step) -> None:
        super().append(self._recipe.through(keys.detach(), self.table), step)

    def reorder(self, rows: Tensor) -> None:
        super().reorder(rows)
        self.table = self.table[rows]

    def score(self, queries: Tensor, step: Step) -> Tensor:
        return super().score(self._through(queries), step)

    def visible_scores(self, queries: Tensor, step: Step, pool: str | None = None) -> Tensor:
        return super().visible_scores(self._through(queries), step, pool)

    def chosen(self, queries: Tensor, k: int, step: Step, pool: str | None = None) -> Selection:
        chosen = super().chosen(self._through(queries), k, step, pool)
        if not step.counted:
            return chosen
        table = self.table[0].numel() * self.table.element_size()
        return replace(chosen, bytes_read=chosen.bytes_read + table)

    @property
    def _recipe(self) -> Calibrated:
        assert isinstance(self.recipe, Calibrated)
        return self.recipe

    def _through(self, queries: Tensor) -> Tensor:
        group = queries.shape[1] // self.table.shape[1]
        return self._recipe.through(queries.float(), self.table.repeat_interleave(group, 1))
