"""The safetensors files of a capture: written, read, and held to what their manifest says of them."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import stat
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from topkit.errors import InputError
from topkit.experiments.runs.parts import write_whole

# Digests and disks: both leave the interpreter free.
THREADS = min(8, os.cpu_count() or 1)
DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
}
FLOATS = tuple(dtype for dtype in DTYPES if dtype.is_floating_point)


def file_name(sample: int, layer: int) -> str:
    """The name under which the tensors of one layer over one sample are kept."""
    return f"sample-{sample:05d}-layer-{layer:03d}.safetensors"


def _in_order(tensors: Mapping[str, Tensor]) -> list[tuple[str, Tensor]]:
    # Widest items first, so that each tensor starts at a multiple of its item size.
    return sorted(tensors.items(), key=lambda named: (-named[1].element_size(), named[0]))


def _header(tensors: Mapping[str, Tensor]) -> bytes:
    entries, end = {}, 0
    for name, x in _in_order(tensors):
        begin, end = end, end + x.numel() * x.element_size()
        entries[name] = {
            "dtype": DTYPES[x.dtype],
            "shape": list(x.shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def file_bytes(tensors: Mapping[str, Tensor]) -> int:
    """Bytes that a file of `tensors` takes; tensors on the meta device will do."""
    return len(_header(tensors)) + sum(x.numel() * x.element_size() for x in tensors.values())


def file_blocks(tensors: Mapping[str, Tensor]) -> Iterator[bytes | memoryview]:
    """The bytes of a safetensors file of `tensors`, in blocks: equal tensors, equal bytes."""
    yield _header(tensors)
    for _, x in _in_order(tensors):
        yield x.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


def digest_blocks(blocks: Iterable[bytes | memoryview]) -> str:
    """The sha256 of the blocks, one after the other."""
    digest = hashlib.sha256()
    for block in blocks:
        digest.update(block)
    return digest.hexdigest()


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Write one file, whole or not at all; its manifest entry: name, bytes, sha256, tensors.

    Raises: InputError when the disk is full.
    """
    digest = hashlib.sha256()

    def write(temporary: Path) -> None:
        with open(temporary, "wb") as file:
            for block in file_blocks(tensors):
                digest.update(block)
                file.write(block)

    write_whole(path, write, parents=False)
    return {
        "name": path.name,
        "bytes": file_bytes(tensors),
        "sha256": digest.hexdigest(),
        "tensors": in_words(tensors),
    }


def in_words(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """The dtype and shape of each, as a manifest says them."""
    return {name: f"{DTYPES[x.dtype]} {list(x.shape)}" for name, x in sorted(tensors.items())}


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, memory-mapped: what is not touched is not read.

    Raises: InputError when it is missing or is no safetensors file.
    """
    try:
        if not path.is_file():
            raise InputError(f"{path} is no plain file; give a safetensors file")
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}
    # The library's own errors, and torch's for types and shapes that it does not take.
    except (OSError, SafetensorError, ValueError, TypeError, RuntimeError, LookupError) as error:
        if isinstance(error, InputError):
            raise
        why = " ".join(str(error).split())[:200]
        raise InputError(f"cannot read {path} as safetensors: {why}; write it again") from error


def verify_file(folder: Path, entry: Mapping[str, Any]) -> None:
    """Require a file to hold the very bytes that its manifest entry was made from.

    Raises: InputError when it is missing, truncated or altered.
    """
    path = folder / entry["name"]
    try:
        about = path.lstat()
        if not stat.S_ISREG(about.st_mode):
            raise InputError(
                f"{path} is a link or no file; a capture's files stand in its folder: copy it there"
            )
        if about.st_size != entry["bytes"]:
            raise InputError(
                f"{path} has {about.st_size} bytes, its manifest says {entry['bytes']}; "
                "capture again"
            )
        with open(path, "rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}; capture again") from error
    if sha256 != entry["sha256"]:
        raise InputError(f"{path} is not the file that was captured (sha256); capture again")


def verify_files(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Verify every file of a manifest.

    Raises: InputError naming one that is missing, truncated or altered.
    """
    with ThreadPoolExecutor(THREADS) as threads:
        for _ in threads.map(lambda entry: verify_file(folder, entry), manifest["files"]):
            pass


def require_space(folder: Path, needed: int) -> int:
    """The free bytes of the disk that `folder` is to be on.

    Raises: InputError when they are fewer than `needed`.
    """
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(there).free
    if needed > free:
        raise InputError(
            f"the capture takes {readable(needed)}, {there} has {readable(free)} free; choose "
            "fewer layers, positions or samples, or another --out"
        )
    return free


def readable(count: int) -> str:
    """A number of bytes in words, as `1.5 GB`."""
    power = min(int(math.log(max(count, 1), 1000)), 4)
    return f"{count / 1000**power:.{1 if power else 0}f} {('B', 'kB', 'MB', 'GB', 'TB')[power]}"
