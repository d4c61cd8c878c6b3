"""Which implementation of an operation runs: its definition in torch, or its Triton kernel."""

from __future__ import annotations

import os
from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor

from topkit.errors import InputError, MissingExtra

BACKENDS = ("auto", "torch", "triton")


def resolve(backend: str, tensor: Tensor, unsupported: str | None = None) -> str:
    """ "torch" or "triton", for an operation on `tensor`.

    "auto" takes Triton for tensors on a GPU, where it is installed and nothing is `unsupported` (a
    sentence that says what the kernel does not take). With TRITON_INTERPRET=1 a forced "triton" runs
    on the CPU, slowly, for tests.
    Raises: InputError for an unknown backend, and for "triton" where it cannot run.
    """
    if backend not in BACKENDS:
        raise InputError(f"backend must be one of {', '.join(BACKENDS)}; got {backend!r}")
    if backend == "torch":
        return "torch"
    missing = _missing(tensor) or unsupported
    if backend == "triton" and missing:
        raise InputError(f'backend "triton": {missing}')
    return "torch" if missing or (backend == "auto" and not tensor.is_cuda) else "triton"


def interpreted() -> bool:
    """Whether Triton's interpreter stands in for a GPU."""
    return os.environ.get("TRITON_INTERPRET") == "1"


@cache
def has_pdl() -> bool:
    """Whether the GPU has programmatic dependent launch: since Hopper."""
    return not interpreted() and torch.cuda.get_device_capability() >= (9, 0)


@cache
def multiprocessors(device: torch.device) -> int:
    """Of a GPU; a few in Triton's interpreter."""
    return 4 if interpreted() else torch.cuda.get_device_properties(device).multi_processor_count


def _missing(tensor: Tensor) -> str | None:
    if not _installed():
        return str(MissingExtra("triton"))
    if not tensor.is_cuda and not interpreted():
        return f"needs tensors on a CUDA GPU; these are on {tensor.device}"
    return None


@cache
def _installed() -> bool:
    return find_spec("triton") is not None
