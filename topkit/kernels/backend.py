"""Which implementation of an operation runs: its definition in torch, or its Triton kernel."""

from __future__ import annotations

import os
from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor

from topkit.errors import InputError, MissingExtra

BACKENDS = ("auto", "torch", "triton")
# The compute capability that kernels need, and those that read fp8.
LEAST, LEAST_FP8 = (8, 0), (8, 9)


def resolve(
    backend: str, tensor: Tensor, unsupported: str | None = None, least: tuple[int, int] = LEAST
) -> str:
    """ "torch" or "triton", for an operation on `tensor`.

    "auto" takes Triton for tensors on a GPU, where it is installed, the tensor's own GPU is an NVIDIA one
    of the `least` compute capability, and nothing is `unsupported` (a sentence that says what the kernel
    does not take). With TRITON_INTERPRET=1 a forced "triton" runs on the CPU, slowly, for tests.
    Raises: InputError for an unknown backend, and for "triton" where it cannot run.
    """
    if backend not in BACKENDS:
        raise InputError(f"backend must be one of {', '.join(BACKENDS)}; got {backend!r}")
    if backend == "torch":
        return "torch"
    missing = _missing(tensor, least) or unsupported
    if backend == "triton" and missing:
        raise InputError(f'backend "triton": {missing}')
    return "torch" if missing or (backend == "auto" and not tensor.is_cuda) else "triton"


def interpreted() -> bool:
    """Whether Triton's interpreter stands in for a GPU."""
    return os.environ.get("TRITON_INTERPRET") == "1"


@cache
def has_pdl(device: torch.device) -> bool:
    """Whether a GPU has programmatic dependent launch: since Hopper."""
    return not interpreted() and capability(device) >= (9, 0)


@cache
def has_gluon(device: torch.device) -> bool:
    """Whether kernels in Gluon run on a GPU: they are for Hopper, and since Triton 3.6 has what they say."""
    if interpreted() or capability(device)[0] != 9:
        return False
    import triton

    return tuple(map(int, triton.__version__.split(".")[:2])) >= (3, 6)


@cache
def multiprocessors(device: torch.device) -> int:
    """Of a GPU; a few in Triton's interpreter."""
    return 4 if interpreted() else torch.cuda.get_device_properties(device).multi_processor_count


@cache
def capability(device: torch.device) -> tuple[int, int]:
    """The compute capability of an NVIDIA GPU; (0, 0) of another maker's, whose numbers mean other things."""
    return (0, 0) if torch.version.hip else torch.cuda.get_device_capability(device)


def _missing(tensor: Tensor, least: tuple[int, int]) -> str | None:
    if not _installed():
        return str(MissingExtra("triton"))
    if interpreted():
        return None
    if not tensor.is_cuda:
        return f"needs tensors on a CUDA GPU; these are on {tensor.device}"
    there = capability(tensor.device)
    if there == (0, 0):
        return f"needs an NVIDIA GPU, for its kernels hold PTX; {tensor.device} is one of ROCm's"
    if there < least:
        wanted, own = (".".join(map(str, version)) for version in (least, there))
        return f"needs a GPU of compute capability {wanted} or more; {tensor.device} has {own}"
    return None


@cache
def _installed() -> bool:
    return find_spec("triton") is not None
