"""The noise of the kernel is that of its definition, to the bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from device import DEVICE
from topkit.kernels.counter_noise import counter_noise, reference

pytest.importorskip("triton")


@pytest.mark.slow
@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("on_device", [False, True])
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_the_kernel_draws_what_the_definition_draws(
    named: bool, padded: bool, on_device: bool
) -> None:
    from topkit.kernels.counter_noise import triton_impl

    torch.manual_seed(0)
    rows, heads, count, width = 3, 4, 2, 70
    slots: Any = (
        torch.randint(-1, 90, (rows, heads, count, width), device=DEVICE) if named else width
    )
    stop = torch.randint(50, 90, (rows, count), device=DEVICE)
    start = torch.tensor([0, 3, 20], device=DEVICE) if padded else None
    number = 3_000_000_000
    seed: Any = torch.tensor(number, device=DEVICE) if on_device else number
    for per_query in (False, True):
        for heads_together, slots_together in ((1, 1), (2, 16), (4, 1)):
            some = {"per_query": per_query, "heads": heads_together, "slots": slots_together}
            ours = triton_impl.counter_noise(slots, stop, heads, (seed, 0x9E3779B97F), start, some)
            theirs = reference.counter_noise(slots, stop, heads, (seed, 0x9E3779B97F), start, some)
            assert torch.equal(ours, theirs.expand_as(ours))


def test_numbers_spread_over_the_unit_interval() -> None:
    stop = torch.tensor([[5000]])
    draws = counter_noise(5000, stop, 4, seed=7)
    assert 0 <= draws.min() < 0.01 and 0.99 < draws.max() < 1 and abs(draws.mean() - 0.5) < 0.01
    assert not torch.equal(draws[:, 0], draws[:, 1])
    assert not torch.equal(draws, counter_noise(5000, stop, 4, seed=8))
