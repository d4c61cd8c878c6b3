"""The divergence of a lightning indexer from attention: the formula, its gradient, and a tile at a time."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from device import gpu
from topkit.experiments.train import divergence as module
from topkit.experiments.train.divergence import Attended, divergence


def drawn(  # of so many heads that no two keys score alike
    seed: int = 0, rows: int = 2, length: int = 23, heads: int = 12) -> tuple[list[Tensor], Attended]:  # fmt: skip
    g = torch.Generator().manual_seed(seed)
    at = torch.tensor([0, 1, 5, 11, length - 1])
    own = [torch.randn(rows, heads, 5, 8, generator=g), torch.randn(rows, 1, length, 8, generator=g), torch.randn(rows, 5, heads, generator=g)]  # fmt: skip
    attention = torch.randn(rows, 4, 5, 6, generator=g), torch.randn(rows, 2, length, 6, generator=g)  # fmt: skip
    return own, Attended(*attention, 0.7, at)


def counted(attended: Attended) -> Attended:
    """Queries that count for more than one, the same in no two rows."""
    return replace(attended, counts=torch.tensor([[1.0, 6.0, 1.0, 2.5, 1.0], [4.0, 1.0, 1.0, 1.0, 9.0]]))  # fmt: skip


def by_hand(own: list[Tensor], a: Attended, keep: int | None) -> Tensor:
    """Query by query, in float64, by the report's formula."""
    queries, keys, gates = own
    losses = []
    for row in range(len(queries)):
        for i, at in enumerate(a.positions.tolist()):
            target = torch.zeros(at + 1, dtype=torch.float64)
            for head in range(a.queries.shape[1]):
                logits = (
                    a.keys[row, head // 2, : at + 1].double() @ a.queries[row, head, i].double()
                )
                target = target + (a.scaling * logits).softmax(0)
            target = target / target.sum()
            index = torch.zeros(at + 1, dtype=queries.dtype)
            for head in range(queries.shape[1]):
                products = keys[row, 0, : at + 1] @ queries[row, head, i]
                index = index + gates[row, i, head] * products.relu()
            index = index * (queries.shape[1] * queries.shape[3]) ** -0.5
            if keep is not None and keep < at + 1:
                kept = sorted(range(at + 1), key=lambda s: -float(index[s].detach()))[:keep]
                index, target = index[kept], target[kept] / target[kept].sum()
            losses.append((target * (target.log() - index.double().log_softmax(0))).sum())
    if a.counts is None:
        return torch.stack(losses).mean()
    counts = a.counts.double().flatten()
    return (torch.stack(losses) * counts).sum() / counts.sum()


@pytest.mark.parametrize("keep", [None, 1, 4, 22, 23, 99])
@pytest.mark.parametrize("tile", [1, 300, 1 << 23])
@pytest.mark.parametrize("alike", [True, False])
def test_it_and_its_gradient_are_the_formula(
    keep: int | None, tile: int, alike: bool, monkeypatch: Any
) -> None:
    monkeypatch.setitem(module.TILE, "cpu", tile)
    own, attended = drawn()
    attended = attended if alike else counted(attended)
    quick, slow = ([x.clone().requires_grad_() for x in own] for _ in range(2))
    loss, wanted = (
        divergence(quick[0], quick[1], quick[2], attended, keep),
        by_hand(slow, attended, keep),
    )
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-4, abs=1e-6)
    (3 * loss).backward()
    (3 * wanted).backward()
    for one, other in zip(quick, slow, strict=True):
        assert one.grad is not None and other.grad is not None
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-3, atol=1e-5)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 99), keep=st.none() | st.integers(1, 30))
def test_it_is_no_less_than_zero_and_needs_no_gradient(seed: int, keep: int | None) -> None:
    own, attended = drawn(seed)
    loss = divergence(own[0], own[1], own[2], attended, keep)
    assert loss.item() >= -1e-6 and not loss.requires_grad


def test_no_tensor_holds_every_query_and_key_of_all_heads(monkeypatch: Any) -> None:
    """Heads of the attention come one at a time, and queries in tiles."""
    seen: list[int] = []
    score = module.score

    def noted(queries: Tensor, keys: Tensor) -> Tensor:
        seen.append(queries[..., 0].numel() * keys.shape[2])
        return score(queries, keys)

    monkeypatch.setattr(module, "score", noted)
    monkeypatch.setitem(module.TILE, "cpu", 400)
    own, attended = drawn(rows=1, length=40)
    divergence(own[0], own[1], own[2], attended)
    # A tile is one query at least.
    assert max(seen) <= 40 and len(seen) >= 4 * 5
    assert math.isfinite(sum(seen))


@pytest.mark.gpu
@gpu
@pytest.mark.parametrize("keep", [None, 40])
def test_a_gpu_gives_what_a_cpu_gives(keep: int | None) -> None:
    own, attended = drawn(rows=2, length=700)
    there = Attended(
        attended.queries.cuda(), attended.keys.cuda(), attended.scaling, attended.positions.cuda()
    )
    here = [x.clone().requires_grad_() for x in own]
    moved = [x.cuda().requires_grad_() for x in own]
    losses = divergence(here[0], here[1], here[2], attended, keep), divergence(moved[0], moved[1], moved[2], there, keep)  # fmt: skip
    assert losses[1].item() == pytest.approx(losses[0].item(), rel=1e-4)
    for loss in losses:
        loss.backward()
    for one, other in zip(here, moved, strict=True):
        assert one.grad is not None and other.grad is not None
        torch.testing.assert_close(other.grad.cpu(), one.grad, rtol=1e-3, atol=1e-5)
