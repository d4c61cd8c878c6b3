"""What all tests share: no network, and where there is no GPU, Triton's kernels run in its interpreter."""

from __future__ import annotations

import os

# Before its client is imported: a name that is nowhere is never looked for on a network.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch

# Read when a kernel is decorated, so it is set before any is imported; never where a GPU is.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
    from interpreter import hasten

    hasten()
