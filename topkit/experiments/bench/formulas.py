"""Bytes that one decoding step must move, as counted, and as the roofline counts them.

B rows, H KV heads of d dimensions, N keys, k chosen. The roofline leaves scales out where they are
few beside the codes; what is counted has them.
"""

from __future__ import annotations

from dataclasses import dataclass

from topkit.kernels.fp4 import BLOCK

BITS = {"sign": 1, "int4": 4, "int8": 8, "fp8_e4m3": 8, **dict.fromkeys(BLOCK, 4)}
# Lightning's index keys, fp8 where nothing else is said, and how they are stored.
LIGHTNING = {"lightning": "fp8_e4m3", **{f"lightning {dtype}": dtype for dtype in BLOCK}}
ELEMENT = 2  # bytes of bf16
SCALE = 4
SCORE = 4


@dataclass(frozen=True)
class Bytes:
    """`counted` are really moved; `ideal` are the roofline's."""

    counted: float
    ideal: float

    def __add__(self, other: Bytes) -> Bytes:
        return Bytes(self.counted + other.counted, self.ideal + other.ideal)


def same(nbytes: float) -> Bytes:
    return Bytes(nbytes, nbytes)


def dense(batch: int, length: int, groups: int, dim: int) -> Bytes:
    """Every key and value read."""
    return same(batch * length * groups * 2 * dim * ELEMENT)


def index(dtype: str, batch: int, length: int, groups: int, dim: int) -> Bytes:
    """An index read; lightning has one key a token, and its scale counts (132 bytes for 128, 68 in mxfp4)."""
    lists, stored = (1 if dtype in LIGHTNING else groups), LIGHTNING.get(dtype, dtype)
    codes = dim * BITS[stored] / 8
    scale = 0 if stored == "sign" else SCALE
    if stored in BLOCK:
        scale = dim / BLOCK[stored]
    ideal = codes + scale if dtype in LIGHTNING else codes
    return Bytes(batch * length * lists * (codes + scale), batch * length * lists * ideal)


def scores(batch: int, length: int, lists: int) -> Bytes:
    """Float32 scores, written or read once."""
    return same(batch * length * lists * SCORE)


def gather(batch: int, groups: int, k: int, dim: int) -> Bytes:
    """The chosen keys and values of each KV head read."""
    return same(batch * groups * k * 2 * dim * ELEMENT)


def projections(hidden: int, heads: int, dim: int) -> Bytes:
    """A lightning indexer's weights read once, in float32: of queries, of the key, of gates."""
    return same((heads * dim + dim + heads) * hidden * 4)


def step(
    dtype: str, batch: int, length: int, groups: int, dim: int, k: int, heads: int | None = None
) -> Bytes:
    """The index read once, and what was chosen: of groups, or of `heads` with lists of their own.

    The scores of those are written and read, which a roofline needs not.
    """
    chosen = gather(batch, heads or groups, k, dim)
    through = 2 * scores(batch, length, heads).counted if heads else 0
    return index(dtype, batch, length, groups, dim) + chosen + Bytes(through, 0)
