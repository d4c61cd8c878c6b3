"""Lists with a share of their keys lost: the kernel's are those of the definition."""

from __future__ import annotations

from itertools import cycle, product
from typing import Any

import pytest
import torch

from device import DEVICE
from topkit.kernels.degrade import MISSES, Loss, reference
from topkit.kernels.select_topk import select_topk

pytest.importorskip("triton")


def lists(rows: int, heads: int, count: int, length: int, k: int) -> dict[str, Any]:
    torch.manual_seed(0)
    scores = torch.randn(rows, heads, count, length)
    # Equal scores too; and a query that sees fewer than k slots.
    scores[..., 1::7] = scores[..., :-1:7]
    stop = torch.randint(k + 1, length + 1, (rows, count))
    stop[0, 0] = k - 1
    scores = scores.masked_fill(torch.arange(length) >= stop[:, None, :, None], -torch.inf)
    slots = select_topk(scores, k + 1)
    best = scores.gather(-1, slots.clamp_min(0)).masked_fill(slots < 0, -torch.inf)
    floor = (best[..., k - 1 : k] - 1e-6).nan_to_num(neginf=-torch.inf)
    return {
        "slots": slots[..., :k],
        "most": scores + 1e-6,
        "floor": floor,
        "stop": stop,
        "scores": scores,
    }


def on_device(made: dict[str, Any]) -> dict[str, Any]:
    return {name: x.to(DEVICE) for name, x in made.items()}


# Every loss and every fill at least once; all of them together are among the slow tests.
QUICK = {
    ("uniform", "draws"),
    ("boundary", "next"),
    ("heavy", "none"),
    ("recent", "next"),
    ("page", "next"),
}
PAIRS = [
    pytest.param(miss, fill, marks=[] if (miss, fill) in QUICK else [pytest.mark.slow])
    for miss in MISSES
    for fill in ("next", "draws", "none")
]


@pytest.mark.slow
@pytest.mark.parametrize(("miss", "fill"), PAIRS)
def test_the_kernel_loses_and_fills_as_the_definition_does(miss: str, fill: str) -> None:
    from topkit.kernels.degrade import triton_impl

    rows, heads, count, length, k = 2, 2, 2, 60, 9
    made = on_device(lists(rows, heads, count, length, k))
    order: Any = (
        made["scores"] if fill == "next" else torch.rand(1, heads, count, length).to(DEVICE)
    )
    order = None if fill == "none" else order
    start = torch.tensor([0, 0], device=DEVICE)
    cases = product((False, True), (0.0, 0.9, 4.3, 9.0))
    # A seed on the host and one on the device by turns: the interpreter takes its time.
    for (further, share), seed in zip(cases, cycle((7, torch.tensor(7), 7)), strict=False):
        loss = Loss(
            share=share,
            chance=share / k,
            miss=miss,
            further=further and miss in ("uniform", "page"),
            per_query=share > 1,
            heads_together=2 if further else 1,
            page=4,
            seed=seed if isinstance(seed, int) else seed.to(DEVICE),
            keys=11,
            pages=12,
            toss=13,
        )
        given = (made["slots"], order, made["most"], made["floor"], loss, made["stop"], start)
        ours = triton_impl.degrade(*given)
        theirs = reference.degrade(*given, "auto")
        assert torch.equal(ours, theirs)
        assert torch.equal(ours[0, :, 0], made["slots"][0, :, 0])
        if share == 9.0 and not loss.further:
            kept = set(made["slots"][1, 0, 1].tolist()) & set(ours[1, 0, 1].tolist())
            assert kept <= {-1}
