"""Programmatic dependent launch: a kernel starts before the one that it waits for has ended.

Since Hopper. Where a kernel is compiled for an older GPU it does neither, so that a machine may have both;
`backend.has_pdl` says the same of the launch.
"""

# A kernel's values are not what Python, and pyright, take them for.
# pyright: reportGeneralTypeIssues=false

from __future__ import annotations

import triton
import triton.language as tl
from triton.language import target_info
from triton.language.extra import cuda

from topkit.kernels.backend import interpreted

PLAIN = tl.constexpr(interpreted())


@triton.jit
def wait_then_launch():
    """Wait for the kernel before, and let the next one be launched already.

    In this order: what a kernel reads before it waits here was written two kernels before, or earlier.
    """
    if not PLAIN and target_info.cuda_capability_geq(9, 0):
        cuda.gdc_wait()
        cuda.gdc_launch_dependents()


@triton.jit
def launch_then_wait():
    """Let the next kernel be launched while the one before has yet to end, and wait for that.

    What the next one reads before it waits was then written three kernels before, or earlier.
    """
    if not PLAIN and target_info.cuda_capability_geq(9, 0):
        cuda.gdc_launch_dependents()
        cuda.gdc_wait()
