"""What the benchmarks of a CPU compare with is the same thing."""

from __future__ import annotations

import torch

from topkit.experiments.bench.cpu_kernels import noise_at_once
from topkit.indexers.base import Step
from topkit.indexers.noise import noise


def test_noise_all_at_once_is_the_same_noise() -> None:
    assert torch.equal(noise_at_once(3, 2, 50), noise(Step(), 50, torch.empty(1, 3, 2, 0)))
