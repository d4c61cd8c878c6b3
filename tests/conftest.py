"""What all tests share: where there is no GPU, Triton's kernels run in its interpreter."""

from __future__ import annotations

import os

import torch

# Read when a kernel is decorated, so it is set before any is imported; never where a GPU is.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
