"""Gates where tensors lie on a GPU, all of them or the kernel's list alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from device import gpu
from topkit.testing import REAL_KINDS, assert_repeatable, assert_selects, real_tensors

DEVICES = [
    ("cpu", "cpu"),
    *(pytest.param(*two, marks=[pytest.mark.gpu, gpu]) for two in (("cuda", "cuda"), ("cuda", "cpu"))),
]  # fmt: skip


@pytest.mark.parametrize(("device", "lists"), DEVICES)
@pytest.mark.parametrize("kind", REAL_KINDS)
def test_lists_are_judged_where_they_lie(device: str, lists: str, kind: str) -> None:
    one = real_tensors(15, kind, queries=3, tokens=600).to(device)
    best = one.scores.sort(dim=-1, descending=True, stable=True).indices[..., :32]
    # What a GPU sums otherwise than the judge is within the rounding that queries and keys allow.
    call = {"queries": one.queries, "keys": one.keys, "scaling": one.scaling}
    summary = assert_selects(best.to(lists), **call, lengths=torch.tensor([600], device=lists))
    assert summary == assert_selects(best.to(lists), **call) and summary.rows == 27
    table = torch.randperm(100, generator=torch.Generator().manual_seed(0))[None, :75]
    physical = table.to(device)[0, best // 8] * 8 + best % 8
    paged = {"block_table": table.to(lists), "page_size": 8}
    assert assert_selects(physical.to(lists), **call, **paged) == summary
    ragged = {
        "queries": one.queries[0].transpose(0, 1), "keys": one.keys[0].transpose(0, 1), "scaling": one.scaling,
        "cu_seqlens": torch.tensor([0, 3], device=device), "lengths": torch.tensor([600], device=device),
    }  # fmt: skip
    assert (
        assert_selects(physical[0].transpose(0, 1).to(lists), **ragged, **paged).mass
        == summary.mass
    )
    scores = one.scores.flatten(0, 2)
    ends = torch.tensor([598, 599, 600] * 9, device=lists)
    assert assert_selects(best.flatten(0, 2).to(lists), scores, lengths=ends).recall.worst == 1
    best[0, 4, 1, 3] = 599
    with pytest.raises(AssertionError, match=r"1 of 27 fail, the worst is row \(0, 4, 1\)"):
        assert_selects(best.to(lists), **call)


@pytest.mark.parametrize(("device", "lists"), DEVICES)
def test_calls_are_repeated_where_inputs_lie(device: str, lists: str) -> None:
    one = real_tensors(8, "ties", queries=3, tokens=600).to(device)

    def select(queries: Tensor, keys: Tensor, lengths: Tensor) -> Tensor:
        scores = queries @ keys.repeat_interleave(3, 1).mT
        count, length = scores.shape[-2:]
        stop = lengths.to(device)[:, None] - count + 1 + torch.arange(count, device=device)
        hidden = torch.arange(length, device=device) >= stop[:, None, :, None]
        best = scores.masked_fill(hidden, -torch.inf).sort(dim=-1, descending=True, stable=True)
        return best.indices[..., :32].to(lists)

    inputs = {
        "queries": one.queries,
        "keys": one.keys,
        "lengths": torch.tensor([500], device=lists),
    }
    summary = assert_repeatable(select, inputs)
    assert summary.rows == 27 and (summary.ties or 0) > 5
    assert None not in (summary.chunked, summary.alone, summary.padded)
