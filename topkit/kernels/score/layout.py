"""How keys lie in memory, for which a kernel is compiled, and the tensors that are its arguments."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

BITS = {"sign": 1, "int2": 2, "int4": 4, "int8": 8, "fp8_e4m3": 0, "lightning": 0}


@dataclass(frozen=True)
class Config:
    """Rows of keys a tile, tiles a program, warps, tiles that are on their way at a time."""

    rows: int
    tiles: int
    warps: int
    stages: int


@dataclass(frozen=True)
class Layout:
    """What a kernel is compiled for: how keys are stored, how many heads share them, the pooling."""

    dtype: str
    dim: int
    group: int
    pool: str
    pow2: bool = False

    @property
    def bits(self) -> int:
        """Of a field; 0 for floats."""
        return BITS[self.dtype]

    @property
    def width(self) -> int:
        """Bytes of a key."""
        return self.dim * (self.bits or 8) // 8

    @property
    def planes(self) -> int:
        return self.dim // self.width

    @property
    def summed(self) -> bool:
        """Whether the pooled scores are those of the heads' summed queries, which is one head's work."""
        return self.pool in ("mean", "sum") and self.dtype != "lightning"

    @property
    def heads(self) -> int:
        """How many are scored."""
        return 1 if self.summed else self.group

    @property
    def summands(self) -> int:
        """Heads whose queries are added up before they are scored as one."""
        return self.group if self.summed else 1

    @property
    def sharing(self) -> int:
        """Keys of one row: 32 bytes at least, and up to 64 where a product has columns left for it."""
        left = 4 // (1 << (self.heads - 1).bit_length())
        return max(1, 32 // self.width, min(left, 64 // self.width))

    @property
    def apart(self) -> bool:
        """Whether each thread holds scores of its own: both digits' columns of a key lie in one."""
        return self.padded == 1 and self.dtype != "lightning"

    @property
    def padded(self) -> int:
        """Heads scored, padded: a product has a power of two of columns, and at least 8."""
        least = 1 if self.dtype == "lightning" else 4 // self.sharing
        return max(1 << (self.heads - 1).bit_length(), least)

    @property
    def bytes(self) -> int:
        """Of a row of keys, in one plane of their fields."""
        return self.sharing * self.width

    @property
    def columns(self) -> int:
        """Of a product: two digits of each head's query for each key of a row."""
        return self.sharing * self.padded * 2


@dataclass(frozen=True)
class Source:
    """The tensors that are scored, as the kernels take them.

    Against codes `queries` are the columns and `query_scales` the units that `queries.ready` makes.
    """

    queries: Tensor
    codes: Tensor
    scales: Tensor | None = None
    query_scales: Tensor | None = None
    gates: Tensor | None = None

    def packed(self) -> tuple[Any, ...]:
        tensors = (self.queries, self.codes, self.scales, self.query_scales, self.gates)
        return tuple(x for t in tensors for x in (t, None if t is None else t.stride()))
