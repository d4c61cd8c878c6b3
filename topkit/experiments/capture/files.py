"""A capture on disk: safetensors files, and a manifest that vouches for every byte of them.

The manifest comes last. Until then each sample that is whole has a small one of its own, sealed in
the same way, so that a rerun computes the others alone and trusts nothing half-written.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from topkit.errors import InputError
from topkit.experiments.runs.parts import write_whole

MANIFEST = "manifest.json"
OF_SAMPLES = "sample-*.json"
FORMAT = {"format": "topkit-capture", "version": 1}
# Digests and disks: both leave the interpreter free.
THREADS = min(8, os.cpu_count() or 1)
DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
}


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

    write_whole(path, write)
    return {
        "name": path.name,
        "bytes": file_bytes(tensors),
        "sha256": digest.hexdigest(),
        "tensors": {
            name: f"{DTYPES[x.dtype]} {list(x.shape)}" for name, x in sorted(tensors.items())
        },
    }


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, memory-mapped: what is not touched is not read.

    Raises: InputError when it is missing or is no safetensors file.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}
    except (OSError, SafetensorError) as error:
        raise InputError(f"cannot read {path}: {error}") from error


def verify_file(folder: Path, entry: Mapping[str, Any]) -> None:
    """Require a file to hold the very bytes that its manifest entry was made from.

    Raises: InputError when it is missing, truncated or altered.
    """
    path = folder / entry["name"]
    try:
        if path.stat().st_size != entry["bytes"]:
            raise InputError(
                f"{path} has {path.stat().st_size} bytes, its manifest says {entry['bytes']}; "
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


def seal(content: Mapping[str, Any]) -> bytes:
    """A manifest's bytes: its content in one canonical form, with the digest of that form."""
    digest = hashlib.sha256(_canonical(content)).hexdigest()
    return _canonical({**content, "sha256": digest})


def _canonical(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, indent=1, sort_keys=True, allow_nan=False) + "\n").encode()


def unseal(path: Path) -> dict[str, Any]:
    """The content of a sealed manifest.

    Raises: InputError when it is missing or differs in any byte from what was written.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    try:
        content = json.loads(raw)
        content.pop("sha256")
        intact = seal(content) == raw
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        intact = False
    if not intact:
        raise InputError(f"{path} is not as it was written; capture again with --force")
    if {name: content.get(name) for name in FORMAT} != FORMAT:
        raise InputError(f"{path} is not of the form {FORMAT}; read it with the topkit it is from")
    return content


def open_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a finished capture.

    Raises: InputError when there is none (an interrupted capture has none yet), or it is altered.
    """
    if not folder.is_dir():
        raise InputError(f"there is no capture at {folder}")
    if not (folder / MANIFEST).exists():
        if any(folder.glob(OF_SAMPLES)):
            raise InputError(
                f"the capture in {folder} was interrupted; the same command finishes it"
            )
        raise InputError(f"{folder / MANIFEST} is missing: {folder} is not a capture")
    return unseal(folder / MANIFEST)


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
