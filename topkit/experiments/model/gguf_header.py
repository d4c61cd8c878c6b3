"""What a GGUF file says of itself, read before its weights are: metadata, and where its tensors stand.

Format: ggml, docs/gguf.md, versions 2 and 3, little-endian.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any, NamedTuple

from topkit.errors import InputError

MAGIC, VERSIONS = b"GGUF", (2, 3)
# Metadata of one number, by type: u8, i8, u16, i16, u32, i32, f32, bool, u64, i64, f64.
NUMBERS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}
TEXT, ARRAY = 8, 9


class Value(NamedTuple):
    """A number, a text as bytes, or a list of either; and its types as the format numbers them."""

    plain: Any
    types: tuple[int, ...]


class TensorEntry(NamedTuple):
    """One tensor: its shape in torch's order, its type, and the bytes from `begin` to `end`."""

    name: str
    shape: tuple[int, ...]
    type: int
    begin: int
    end: int


@dataclass(frozen=True)
class Header:
    """All that stands before the weights."""

    metadata: dict[str, Value]
    tensors: tuple[TensorEntry, ...]

    def get(self, key: str) -> Any:
        """A number, a text or a list of the metadata; None where there is none."""
        value = self.metadata.get(key)
        plain = None if value is None else value.plain
        return plain.decode() if isinstance(plain, bytes) else plain

    def own(self, key: str) -> Any:
        """What stands under ARCHITECTURE.key."""
        return self.get(f"{self.get('general.architecture')}.{key}")


def read_header(path: Path) -> Header:
    """Raises: InputError for what is no GGUF file, or ends before its last tensor."""
    with open(path, "rb") as file:
        begin = file.read(len(MAGIC))
        if len(begin) < len(MAGIC) and MAGIC.startswith(begin):
            raise InputError(f"{path} is truncated: {len(begin)} bytes in all; fetch it again")
        if begin != MAGIC:
            raise InputError(f"{path} is no GGUF file: it begins with {begin!r}, not {MAGIC!r}")
        raw = file.read(4)
        version = int.from_bytes(raw, "little")
        try:
            if len(raw) == 4 and version not in VERSIONS:
                raise InputError(
                    f"{path} is a GGUF file of version {version}; expected 2 or 3, little-endian"
                )
            # Mapped, no read takes more memory than the file has bytes, whatever length it claims.
            with mmap(file.fileno(), 0, access=ACCESS_READ) as content:
                content.seek(file.tell())
                header = _rest(content)
        except InputError:
            raise
        except (struct.error, LookupError, ValueError, TypeError, ArithmeticError, MemoryError):
            raise InputError(
                f"{path} is truncated or damaged within its header; fetch it again"
            ) from None
    size, end = path.stat().st_size, max((one.end for one in header.tensors), default=0)
    if size < end:
        raise InputError(f"{path} is truncated: {size:,} bytes of {end:,}; fetch it again")
    return header


def _rest(file: mmap) -> Header:
    """The header behind magic and version."""
    from gguf import GGML_QUANT_SIZES

    tensors, pairs = _unpack(file, "QQ")
    metadata: dict[str, Value] = {}
    for _ in range(pairs):
        key = _text(file).decode()
        metadata[_once(key, metadata)] = _value(file, *_unpack(file, "I"))
    entries: dict[str, TensorEntry] = {}
    for _ in range(tensors):
        name, (dimensions,) = _once(_text(file).decode(), entries), _unpack(file, "I")
        shape = tuple(reversed(_unpack(file, f"{dimensions}Q")))
        kind, offset = _unpack(file, "IQ")
        block, size = GGML_QUANT_SIZES[kind]
        end = offset + prod(shape) // block * size
        entries[name] = TensorEntry(name, shape, kind, offset, end)
    align = int(metadata["general.alignment"].plain) if "general.alignment" in metadata else 32
    if align < 1 or align & (align - 1):
        raise ValueError("an alignment is a power of two")
    first = -(-file.tell() // align) * align
    return Header(
        metadata,
        tuple(
            one._replace(begin=first + one.begin, end=first + one.end) for one in entries.values()
        ),
    )


def _once(name: str, known: Mapping[str, Any]) -> str:
    """A name that is not there yet: of two entries one would be passed over, nobody knows which."""
    if name in known:
        raise ValueError(f"{name} stands twice")
    return name


def _unpack(file: mmap, form: str) -> tuple[Any, ...]:
    return struct.unpack(f"<{form}", file.read(struct.calcsize(f"<{form}")))


def _text(file: mmap) -> bytes:
    (length,) = _unpack(file, "Q")
    text = file.read(length)
    if len(text) < length:
        raise ValueError("the file ends within a text")
    return text


def _value(file: mmap, kind: int) -> Value:
    if kind == TEXT:
        return Value(_text(file), (kind,))
    if kind != ARRAY:
        return Value(_unpack(file, NUMBERS[kind])[0], (kind,))
    of, count = _unpack(file, "IQ")
    if of == TEXT:
        return Value([_text(file) for _ in range(count)], (kind, of))
    return Value(list(_unpack(file, f"{count}{NUMBERS[of]}")), (kind, of))
