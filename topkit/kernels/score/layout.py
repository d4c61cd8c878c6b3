"""How keys lie in memory, for which a kernel is compiled, and the tensors that are its arguments."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from topkit.kernels.fp4 import BLOCK

BITS = {"sign": 1, "int2": 2, "int4": 4, "int8": 8}


@dataclass(frozen=True)
class Config:
    """Rows of keys a tile, tiles a program, warps, tiles that are on their way at a time.

    registers: at most so many a thread where scores are written, or as many as the compiler takes.
    resident: programs that a multiprocessor holds at once, which are then given as many tiles, at most `tiles`, as
    fill the GPU with them a whole number of times.
    """

    rows: int
    tiles: int
    warps: int
    stages: int
    registers: int | None = None
    resident: int | None = None

    def share(self, tiles: int, lists: int, multiprocessors: int) -> int:
        """Tiles a program, of lists of so many each."""
        if self.resident is None:
            return self.tiles
        at_once = multiprocessors * self.resident
        turns = -(-tiles * lists // (at_once * self.tiles))
        return -(-tiles // max(1, turns * at_once // lists))


@dataclass(frozen=True)
class Layout:
    """What a kernel is compiled for: how keys are stored, how many heads share them, the pooling."""

    dtype: str
    dim: int
    group: int
    pool: str
    pow2: bool = False
    # Lightning's: a sum of what is positive, weighted by gates.
    gated: bool = False

    @property
    def name(self) -> str:
        """By which configurations are found."""
        return f"lightning {self.dtype}" if self.gated else self.dtype

    @property
    def bits(self) -> int:
        """Of a field; 0 for floats."""
        return BITS.get(self.dtype, 0)

    @property
    def blocked(self) -> bool:
        """Whether keys are fp4: two fields a byte, and scales of blocks, all of a key in one word."""
        return self.dtype in BLOCK

    @property
    def blocks(self) -> int:
        """Of a key of fp4."""
        return self.dim // BLOCK[self.dtype]

    @property
    def room(self) -> int:
        """Doublings of mxfp4's largest block (topkit.kernels.score.fp4_fields): few where products are float16."""
        return 1 if self.gated else 13

    @property
    def worth(self) -> float:
        """What one is of a field's number once it is an operand, beside units and scales."""
        return {"mxfp4": 2.0**-self.room, "nvfp4": 2.0**8}.get(self.dtype, 1.0)

    @property
    def made_ready(self) -> bool:
        """Whether queries are given as `queries` or `fp4_queries` make them ready."""
        return self.blocked or not self.gated

    @property
    def width(self) -> int:
        """Bytes of a key."""
        return self.dim * (4 if self.blocked else self.bits or 8) // 8

    @property
    def planes(self) -> int:
        return self.dim // self.width

    @property
    def summed(self) -> bool:
        """Whether the pooled scores are those of the heads' summed queries, which is one head's work."""
        return self.pool in ("mean", "sum") and not self.gated

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
        if self.blocked:  # so that the scales of a row are one word
            return 1
        left = 4 // (1 << (self.heads - 1).bit_length())
        return max(1, 32 // self.width, min(left, 64 // self.width))

    @property
    def apart(self) -> bool:
        """Whether each thread holds scores of its own: both digits' columns of a key lie in one."""
        return self.padded == 1 and not self.gated

    @property
    def padded(self) -> int:
        """Heads scored, padded: a product has a power of two of columns, and at least 8; 16 are added up by another."""
        least = (16 if self.dtype == "mxfp4" else 1) if self.gated else 4 // self.sharing
        return max(1 << (self.heads - 1).bit_length(), least)

    @property
    def bytes(self) -> int:
        """Of a row of keys, in one plane of their fields."""
        return self.sharing * self.width

    @property
    def operands(self) -> tuple[int, int]:
        """Of a row of keys: how many, and their length; both halves of fp4's bytes are one."""
        planes = 1 if self.blocked else self.planes
        return planes, self.bytes * self.planes // planes

    @property
    def neighbours(self) -> int:
        """Operands of fp4 beside each other that a tensor core takes of a thread; with few columns the compiler says."""
        if self.dtype == "mxfp4":
            return 4 if self.gated or self.columns <= 8 else 2
        return 8 if self.columns <= 8 else 2

    @property
    def columns(self) -> int:
        """Of a product: two digits of each head's query for each key of a row, one of lightning's."""
        return self.sharing * self.padded * (1 if self.gated else 2)


@dataclass(frozen=True)
class Source:
    """The tensors that are scored, as the kernels take them.

    Of queries that are made ready, `queries` are the columns and `query_scales` the units. `scales` are those
    of keys, of fp4 in words (topkit.kernels.fp4.words).
    """

    queries: Tensor
    codes: Tensor
    scales: Tensor | None = None
    query_scales: Tensor | None = None
    gates: Tensor | None = None

    def packed(self) -> tuple[Any, ...]:
        tensors = (self.queries, self.codes, self.scales, self.query_scales, self.gates)
        return tuple(x for t in tensors for x in (t, None if t is None else t.stride()))
