"""What training changed, in a few megabytes: weights minus those that it began from, as whole steps, packed.

Each tensor's difference is rounded to multiples of one step of its own, its root mean square times a number that is
the same for all tensors: the least at which the file is as small as asked. Whole numbers near zero pack well,
so that a large model keeps its largest changes, and a small one nearly all.
"""

from __future__ import annotations

import bz2
import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from topkit.errors import InputError
from topkit.experiments.model.digests import weights_digest
from topkit.experiments.train.lightning import save_weights

# Bytes of a file, at most.
MOST = 6_000_000
# A step, in root mean squares of a tensor's difference: at least what is worth keeping, at most nearly all of it.
FINEST, COARSEST = 0.05, 16.0
# Of a tensor, how many numbers its size is estimated from.
SAMPLED = 1 << 17


def save_difference(
    start: Mapping[str, Tensor],
    trained: Any,
    folder: Path,
    name: str,
    most: int = MOST,
    **said: Any,
) -> tuple[Path, float]:
    """Write trained minus start as `name`-HASH.safetensors of at most `most` bytes, and its error.

    start: the weights that training began from, by name. The error is |packed - difference| / |difference|,
    over all tensors; it stands in the file beside `said`.
    Raises: InputError where not even the largest changes fit.
    """
    weights = {n: x for n, x in trained.state_dict().items() if n in start}
    gaps = {n: x.cpu().float() - start[n].cpu().float() for n, x in distinct(weights).items()}
    packed, step = _smallest(gaps, most - 4096 - 256 * len(gaps))
    off = sum(float((_unpacked(packed[n], g.shape) - g).square().sum()) for n, g in gaps.items())
    whole = sum(float(g.square().sum()) for g in gaps.values())
    error = (off / whole) ** 0.5 if whole else 0.0
    tensors = {n: torch.frombuffer(bytearray(p), dtype=torch.uint8) for n, p in packed.items()}
    path = save_weights(folder, name, tensors, error=f"{error:.4f}", step=f"{step:.4f}", **said)
    return path, error


def distinct(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors that share no memory: of tied weights the first by name."""
    first: dict[int, str] = {}
    for name in sorted(weights):
        if weights[name].is_floating_point():
            first.setdefault(weights[name].data_ptr(), name)
    return {name: weights[name] for name in first.values()}


def _smallest(gaps: Mapping[str, Tensor], room: int) -> tuple[dict[str, bytes], float]:
    """The tensors packed by the finest step at which they fit, as nearly as entropy tells before they are packed."""
    low, high = FINEST, COARSEST
    while high / low > 1.01:
        step = (low * high) ** 0.5
        if sum(_bytes(gap, step) for gap in gaps.values()) > room:
            low = step
        else:
            high = step
    while high < 2 * COARSEST:
        packed = {name: _pack(gap, high) for name, gap in gaps.items()}
        if sum(map(len, packed.values())) <= room:
            return packed, high
        high *= 1.05
    raise InputError(f"a difference of {len(gaps)} tensors does not fit into {room:,} bytes")


def _bytes(gap: Tensor, step: float) -> float:
    """About what a tensor takes when it is packed: the entropy of its whole numbers, of some of them."""
    some = gap.flatten()[:: max(1, gap.numel() // SAMPLED)]
    share = np.bincount(_steps(some, gap, step)[1].view(np.uint8), minlength=256) / len(some)
    bits = -(share[share > 0] * np.log2(share[share > 0])).sum()
    return float(gap.numel() * bits / 8)


def _steps(values: Tensor, gap: Tensor, step: float) -> tuple[np.float32, np.ndarray]:
    """The size of one step of a tensor, and some of its values as whole numbers of them."""
    size = np.float32(step * float(gap.square().mean().sqrt()))
    if size == 0:
        return size, np.zeros(values.numel(), dtype=np.int8)
    return size, np.rint(values.numpy() / size).clip(-127, 127).astype(np.int8)


def _pack(gap: Tensor, step: float) -> bytes:
    """Of a tensor: its step in 4 bytes, then whole numbers of steps, packed."""
    size, steps = _steps(gap.flatten(), gap, step)
    return size.tobytes() + min(_huffman(steps.tobytes()), bz2.compress(steps.tobytes()), key=len)


def _huffman(content: bytes) -> bytes:
    """Whole numbers that are drawn, not repeated, pack to their entropy; where nearly all are zero, bz2 is better."""
    packer = zlib.compressobj(9, zlib.DEFLATED, zlib.MAX_WBITS, 9, zlib.Z_HUFFMAN_ONLY)
    return packer.compress(content) + packer.flush()


def _unpacked(packed: bytes, shape: torch.Size) -> Tensor:
    size = float(np.frombuffer(packed[:4], dtype=np.float32)[0])
    unpack = bz2.decompress if packed[4:7] == b"BZh" else zlib.decompress
    steps = np.frombuffer(unpack(packed[4:]), dtype=np.int8)
    return torch.from_numpy(steps.astype(np.float32) * size).view(shape)


@torch.no_grad()
def apply_difference(model: Any, path: Path | str) -> dict[str, str]:
    """Give a model, the one that training began from, what it changed; what the file says of itself.

    Raises: InputError for what is no difference, and for another model's.
    """
    try:
        with safe_open(str(path), "pt") as file:
            said = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except Exception as error:  # safetensors has an error of its own for all that a file can be
        raise InputError(f"cannot read {path} as a difference of weights: {error}") from error
    if said.get("kind") != "difference":
        raise InputError(f"{path} is no difference that `topkit train sft` wrote")
    weights = model.state_dict()
    if weights_digest(model, torch.bfloat16) not in json.loads(said["starts"]):
        raise InputError(f"{path} is of another model; it was made from {said.get('model')}")
    for name, packed in tensors.items():
        own = weights[name]
        gap = _unpacked(packed.numpy().tobytes(), own.shape)
        own.copy_((own.float() + gap.to(own.device)).to(own.dtype))
    return said
