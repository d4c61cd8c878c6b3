# pyright: strict
"""The family "score every key over fewer channels"."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from torch import Tensor

from topkit.errors import InputError
from topkit.indexers.base import Index, Selection, Step
from topkit.indexers.calibration import read
from topkit.indexers.scored import Codes, Scored, ScoredIndex
from topkit.indexers.traits import Traits
from topkit.kernels.score import score


@dataclass(frozen=True)
class Channels(Scored):
    """A recipe that scores keys over `channels` of their dimensions: a number of them, or a share."""

    channels: int | float = 0.25

    family: ClassVar[str] = "channels"

    def __post_init__(self) -> None:
        most = self.channels
        whole = type(most) is int and most >= 1
        if not whole and not (type(most) is float and 0 < most < 1):
            raise InputError(
                f"{type(self).__name__}: channels must be a whole number of at least 1, or a share of the "
                f"head's dimensions between 0 and 1, as 0.25; got {most!r}"
            )

    def count(self, width: int) -> int:
        """How many of `width` channels are kept. Raises: InputError where there are fewer."""
        if type(self.channels) is int and self.channels > width:
            raise InputError(
                f"{self} keeps {self.channels} channels, and keys have {width} dimensions; give at most "
                f"{width}, or a share such as 0.25"
            )
        return self.channels if type(self.channels) is int else math.ceil(self.channels * width)


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

    def learn(self, keys: Tensor, step: Step) -> Tensor:
        """The map [B, Hk, ...] of keys [B, Hk, T, D], all channels, the best first; padding left out."""
        raise NotImplementedError(f"{type(self).__name__}.learn")

    def leading(self, table: Tensor, count: int) -> Tensor:
        """The first `count` channels of a map [B, Hk, ...]."""
        raise NotImplementedError(f"{type(self).__name__}.leading")

    def through(self, vectors: Tensor, table: Tensor) -> Tensor:
        """Vectors [B, H, t, D] over the channels of a map [B or 1, H, ...]: [B, H, t, r]."""
        raise NotImplementedError(f"{type(self).__name__}.through")

    def build(self, keys: Tensor, step: Step) -> Index:
        count = self.count(keys.shape[3])
        if self.calibration:
            table = self.calibrated(step.layer, keys)[None]
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
    """Codes of keys through a map [B or 1, Hk, ...] that never changes; queries go through it too."""

    table: Tensor = field(kw_only=True)

    @property
    def nbytes(self) -> int:
        return super().nbytes + self.table.untyped_storage().nbytes()

    def append(self, keys: Tensor, step: Step) -> None:
        super().append(self._recipe.through(keys.detach(), self.table), step)

    def reorder(self, rows: Tensor) -> None:
        super().reorder(rows)
        if len(self.table) > 1:
            self.table = self.table[rows]

    def score(self, queries: Tensor, step: Step) -> Tensor:
        return super().score(self._through(queries), step)

    def visible_scores(self, queries: Tensor, step: Step, pool: str | None = None) -> Tensor:
        return super().visible_scores(self._through(queries), step, pool)

    def chosen(self, queries: Tensor, k: int, step: Step, pool: str | None = None) -> Selection:
        return super().chosen(self._through(queries), k, step, pool)

    @property
    def _recipe(self) -> Calibrated:
        assert isinstance(self.recipe, Calibrated)
        return self.recipe

    def _through(self, queries: Tensor) -> Tensor:
        group = queries.shape[1] // self.table.shape[1]
        return self._recipe.through(queries.float(), self.table.repeat_interleave(group, 1))
