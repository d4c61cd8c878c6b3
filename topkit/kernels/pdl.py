"""Programmatic dependent launch: a kernel starts before the one that it waits for has ended."""

# A kernel's values are not what Python, and pyright, take them for.
# pyright: reportGeneralTypeIssues=false

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra import cuda

from topkit.kernels.backend import has_pdl

PDL = tl.constexpr(has_pdl())


@triton.jit
def wait_then_launch():
    """Wait for the kernel before, and let the next one be launched already.

    In this order: what a kernel reads before it waits here was written two kernels before, or earlier.
    """
    if PDL:
        cuda.gdc_wait()
        cuda.gdc_launch_dependents()


@triton.jit
def launch_then_wait():
    """Let the next kernel be launched while the one before has yet to end, and wait for that.

    What the next one reads before it waits was then written three kernels before, or earlier.
    """
    if PDL:
        cuda.gdc_launch_dependents()
        cuda.gdc_wait()
