"""Files of tensors by name, mapped into memory: safetensors, npz, and what torch.save wrote."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Mapping
from io import BytesIO
from mmap import mmap
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from numpy.lib import format as npy
from torch import Tensor

from topkit.documents import quote
from topkit.errors import InputError
from topkit.experiments.capture.mapped import mapped, safetensors_of
from topkit.experiments.capture.stacked import by_layer

TORCH = (".pt", ".pth", ".bin")
# A local header of a zip file: the lengths of the member's name and of its extra field stand at its end. The header
# of an array in it is shorter than this.
_HEADER, _NPY = 30, 1 << 16


def read_file(path: Path) -> dict[str, Any]:
    """The tensors and numbers of a file, by their names; what is not touched is not read.

    Raises: InputError for a file that cannot be read, or holds something else.
    """
    if not path.is_file():
        raise InputError(f"{path} is no plain file; give an .npz, .pt or .safetensors")
    if path.suffix == ".jsonl":
        raise InputError(f"{path} is a trace, which says its lengths itself; leave them out")
    if path.suffix == ".npz":
        return _read("npz", path, lambda: dict(_of_zip(path)))
    if path.suffix in TORCH:
        return _read("a file of torch.save (weights_only)", path, lambda: _of_torch(path))
    if path.suffix == ".npy":
        raise InputError(f"{path} is one array without a name; give an .npz, as np.savez(q=q, k=k)")
    return dict(by_layer(path, _read("safetensors", path, lambda: dict(safetensors_of(path)))))


def _read(kind: str, path: Path, read: Any) -> dict[str, Any]:
    try:
        return read()
    except InputError:
        raise
    except UnpicklingError as error:
        raise InputError(
            f"{path} holds Python objects, which would be run to be read, or is no file of torch.save; save "
            "tensors alone, by names: torch.save({'q': q, 'k': k})"
        ) from error
    # The libraries' own errors for files that are cut off, or are something else.
    except Exception as error:
        why = " ".join(str(error).split())[:160]
        raise InputError(
            f"cannot read {path} as {kind}: {type(error).__name__}: {why}; write it again, by names to tensors"
        ) from error


def _of_zip(path: Path) -> Iterator[tuple[str, Tensor]]:
    raw = mapped(path)
    with zipfile.ZipFile(path) as archive:
        seen = set[str]()
        for member in archive.infolist():
            name = member.filename.removesuffix(".npy")
            if name in seen:
                raise ValueError(f"it holds {quote(name)} twice")
            seen.add(name)
            if member.compress_type == zipfile.ZIP_STORED:
                array = _in_place(raw, member)
            else:
                with archive.open(member) as file:
                    array = npy.read_array(file, allow_pickle=False)
            yield name, _tensor(name, array)


def _in_place(raw: mmap, member: zipfile.ZipInfo) -> np.ndarray:
    """A member that is not compressed, where it lies in the file."""
    at = member.header_offset
    names = (raw[at + 26 : at + 28], raw[at + 28 : at + 30])
    begin = at + _HEADER + sum(int.from_bytes(size, "little") for size in names)
    head = BytesIO(raw[begin : begin + min(member.file_size, _NPY)])
    read = (
        npy.read_array_header_1_0 if npy.read_magic(head) == (1, 0) else npy.read_array_header_2_0
    )
    shape, fortran, kind = read(head)
    if kind.hasobject:
        raise ValueError("it holds Python objects")
    if any(size < 0 for size in shape):
        raise ValueError(f"{member.filename} has the shape {shape}")
    count, first = int(np.prod(shape, dtype=np.int64)), begin + head.tell()
    if first + count * kind.itemsize > min(begin + member.file_size, len(raw)):
        raise ValueError(f"{member.filename} is cut off")
    array = np.frombuffer(raw, kind, count, first) if count else np.empty(0, kind)
    return array.reshape(shape, order="F" if fortran else "C")


def _tensor(name: str, array: np.ndarray) -> Tensor:
    if array.dtype.kind not in "fiu":
        raise InputError(
            f"{name} is {array.dtype}; numpy holds float16, float32, float64 and integers: write bfloat16 and "
            "fp8 by torch.save or safetensors"
        )
    native = array.dtype.newbyteorder("=")
    if native == np.uint16 or native == np.uint32 or native == np.uint64:
        native = np.dtype(np.int64)
    return torch.from_numpy(array if array.dtype == native else array.astype(native))


def _of_torch(path: Path) -> dict[str, Any]:
    in_zip = zipfile.is_zipfile(path)
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=in_zip or None)
    except RuntimeError as error:
        if "mmap" not in str(error):
            raise
        raise InputError(
            f"{path} has more bytes than torch can map here; write it as safetensors or .npz (np.savez), which are "
            "read layer by layer"
        ) from error
    if not isinstance(loaded, Mapping):
        raise InputError(
            f"{path} holds {quote(type(loaded).__name__)}; give names to tensors, as torch.save({{'q': q, 'k': k}})"
        )
    return dict(_flat("", loaded))


def _flat(prefix: str, value: Any) -> Iterator[tuple[str, Any]]:
    """What nested mappings and lists hold, by names joined with dots; layers may be keys or places."""
    if isinstance(value, Mapping):
        for name, part in value.items():
            yield from _flat(f"{prefix}.{name}" if prefix else str(name), part)
    elif isinstance(value, (list, tuple)) and any(isinstance(x, (Mapping, Tensor)) for x in value):
        for number, part in enumerate(value):
            yield from _flat(f"{prefix}.{number}", part)
    elif value is not None:
        yield prefix, value
