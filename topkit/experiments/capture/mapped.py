"""Files of tensors mapped into memory: more of them than there is memory, since nothing is read that is not touched.

torch and safetensors reserve memory for what they map, so that a file larger than it cannot be opened; here a page is
copied when it is written to, and never else.
"""

from __future__ import annotations

import json
import math
import mmap
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from topkit.documents import quote

# Python knows it from 3.13 on.
_NO_RESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000 if sys.platform == "linux" else 0)
_HEADER = 100_000_000
# Bytes of a file that is copied where it cannot be mapped: its header was not filled up to a multiple of 8.
COPIED = 1 << 30
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E8M0": torch.float8_e8m0fnu,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


def mapped(path: Path) -> mmap.mmap:
    """The bytes of a file. Raises: OSError, ValueError for one that is empty."""
    with open(path, "rb") as file:
        if sys.platform == "win32":
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        size, flags = os.fstat(file.fileno()).st_size, mmap.MAP_PRIVATE | _NO_RESERVE
        return mmap.mmap(file.fileno(), size, flags, mmap.PROT_READ | mmap.PROT_WRITE)


def tensor_at(raw: mmap.mmap, kind: torch.dtype, shape: list[int], begin: int) -> Tensor:
    """A tensor whose numbers begin at a byte. Raises: ValueError where they end behind the file's."""
    count = math.prod(shape)
    if count == 0:
        return torch.empty(shape, dtype=kind)
    if begin + count * kind.itemsize > len(raw):
        raise ValueError("it is cut off")
    if begin % kind.itemsize == 0:
        return torch.frombuffer(raw, dtype=kind, count=count, offset=begin).view(shape)
    if len(raw) > COPIED:
        raise ValueError(
            f"its numbers do not begin at multiples of their {kind.itemsize} bytes, and it is too large to copy"
        )
    size = count * kind.itemsize
    own = torch.frombuffer(raw, dtype=torch.uint8, count=size, offset=begin).clone()
    return own.view(kind).view(shape)


def _once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A mapping of JSON. Raises: ValueError for a name that stands twice, of which JSON would keep the last."""
    made: dict[str, Any] = {}
    for name, value in pairs:
        if name in made:
            raise ValueError(f"it holds {quote(name)} twice")
        made[name] = value
    return made


def safetensors_of(path: Path) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a safetensors file by name. Raises: OSError, ValueError, KeyError, TypeError."""
    raw = mapped(path)
    length = int.from_bytes(raw[:8], "little")
    if len(raw) < 8 or not 0 < length <= min(_HEADER, len(raw) - 8):
        raise ValueError("its header is cut off, or it is no safetensors file")
    header: dict[str, Any] = json.loads(
        raw[8 : 8 + length].decode("utf-8"), object_pairs_hook=_once_each
    )
    if not isinstance(header, dict):
        raise ValueError("its header names no tensors")
    end = 0
    for name, said in header.items():
        if name == "__metadata__":
            continue
        kind, shape, (begin, stop) = said["dtype"], said["shape"], said["data_offsets"]
        if kind not in DTYPES:
            raise ValueError(f"{name} is {str(kind)[:20]}, which is not read")
        numbers = [*shape, begin, stop]
        if not all(type(n) is int and n >= 0 for n in numbers):
            raise ValueError(f"{name} has sizes and offsets that are no whole numbers")
        if stop - begin != math.prod(shape) * DTYPES[kind].itemsize:
            raise ValueError(f"{name} takes {stop - begin} bytes, and its shape {shape} others")
        end = max(end, stop)
        yield name, tensor_at(raw, DTYPES[kind], shape, 8 + length + begin)
    if end != len(raw) - 8 - length:
        raise ValueError(f"it has {len(raw)} bytes, and its header says {8 + length + end}")
