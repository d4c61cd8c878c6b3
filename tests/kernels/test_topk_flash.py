"""The kernels that attend to what cuts keep, forward and backward: on a GPU, or in Triton's interpreter."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from device import CUDA, DEVICE
from topkit.errors import InputError
from topkit.kernels.topk_attention import Cuts, cuts_of, topk_attention

flash = pytest.importorskip("topkit.kernels.topk_attention.flash")
impl = pytest.importorskip("topkit.kernels.topk_attention.triton_impl")


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the interpreter tiles are small; of the two passes that share ties one's are smaller."""
    if not CUDA:
        small = flash.Config(16, 16, 1, 1)
        configs = flash.Configs(flash.Config(32, 16, 1, 1), small, small)
        monkeypatch.setattr(flash, "CONFIGS", dict.fromkeys(flash.CONFIGS, configs))
        config = impl.Config(16, 128, 1, 1, 1)
        configs = impl.Configs(impl.Config(16, 64, 1, 1, 1), config, config)
        monkeypatch.setattr(impl, "CONFIGS", {128: configs})


def drawn(
    rows: int = 1, heads: int = 2, groups: int = 1, count: int = 37, length: int = 37, dim: int = 16,
    wide: int = 16, seed: int = 0,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Queries, keys and values, and a gradient of the output."""
    draw = torch.Generator().manual_seed(seed)
    shapes = (rows, heads, count, dim), (rows, groups, length, dim), (rows, groups, length, wide)
    q, k, v, grad = (torch.randn(s, generator=draw) for s in (*shapes, (rows, heads, count, wide)))
    return q.to(DEVICE), k.to(DEVICE), v.to(DEVICE), grad.to(DEVICE)


def attended(inputs: list[Tensor], cuts: Cuts, start: Tensor | None) -> Tensor:
    q, k, v = inputs
    return flash.attend(q, k, v, cuts, scaling=0.3, start=start)


def defined(inputs: list[Tensor], kept: Tensor, **options: Any) -> Tensor:
    q, k, v = inputs
    return topk_attention(q, k, v, kept, **options)


def held(
    q: Tensor, k: Tensor, v: Tensor, grad: Tensor, kept: Tensor, start: Tensor | None = None
) -> None:
    """Hold outputs and gradients to the definition's; in the interpreter in float32."""
    dtype = torch.bfloat16 if CUDA else torch.float32
    near: dict[str, Any] = {"rtol": 5e-2, "atol": 5e-2} if CUDA else {"rtol": 1e-4, "atol": 1e-5}
    inputs = [x.to(dtype).requires_grad_() for x in (q, k, v)]
    exact = [x.detach().double().requires_grad_() for x in inputs]
    cuts = cuts_of(inputs[0], inputs[1], kept.expand(len(q), -1), start, flash.SLACK)
    out = attended(inputs, cuts, start)
    want = defined(exact, kept, scaling=0.3, start=start, backend="torch")
    torch.testing.assert_close(out.double(), want, **near)
    made = torch.autograd.grad(out, inputs, grad.to(dtype))
    for one, other in zip(made, torch.autograd.grad(want, exact, grad.double()), strict=True):
        torch.testing.assert_close(one.double(), other, **near)


CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "group": {"rows": 2, "heads": 4, "groups": 2, "count": 19, "length": 19},
    "newest": {"count": 5, "length": 50},
    "one key": {"count": 1, "length": 1},
    "other dimensions": {"dim": 32, "wide": 16, "heads": 1, "count": 20, "length": 20},
}


@pytest.mark.parametrize("case", CASES)
def test_outputs_and_gradients_are_the_definition(case: str) -> None:
    q, k, v, grad = drawn(**CASES[case])
    held(q, k, v, grad, torch.arange(q.shape[2], device=DEVICE)[None] % 7 + 1)


@pytest.mark.parametrize("kept", [0, 1, 99])
def test_nothing_one_key_and_all(kept: int) -> None:
    q, k, v, grad = drawn(heads=1, count=18, length=20)
    held(q, k, v, grad, torch.full((1, 18), kept, device=DEVICE))


def test_padding_is_not_seen_whatever_it_holds() -> None:
    q, k, v, grad = drawn(rows=2, heads=1, count=36, length=36)
    k[1, :, :19] = v[1, :, :19] = float("nan")
    kept, start = torch.full((1, 36), 4, device=DEVICE), torch.tensor([0, 19], device=DEVICE)
    dtype = torch.bfloat16 if CUDA else torch.float32
    inputs = [x.to(dtype).requires_grad_() for x in (q, k, v)]
    cuts = cuts_of(inputs[0], inputs[1].detach().nan_to_num(), kept.expand(2, -1), start)
    out = attended(inputs, cuts, start)
    made = torch.autograd.grad(out, inputs, grad.to(dtype))
    assert (out[1, :, :19] == 0).all() and all((x[1, :, :19] == 0).all() for x in made)
    held(q, k.nan_to_num(), v.nan_to_num(), grad, kept, start)


def test_an_infinite_score_that_stays_is_no_number_in_its_row_alone() -> None:
    q, k, v, _ = (x.bfloat16() for x in drawn(heads=1, count=20, length=20))
    q[:, :, 5], k[:, :, 3] = 0, 0
    q[:, :, 5, 0], k[:, :, 3, 0] = 3, 3e38
    q[:, :, :5, 0] = q[:, :, 6:, 0] = 0
    kept = torch.full((20,), 4, device=DEVICE)
    for form in ("flash", "torch"):
        out = topk_attention(q, k, v, kept, backend=form)
        assert out.isnan().any(-1).nonzero()[:, 2].tolist() == [5], form


def test_ties_are_cut_by_slot() -> None:
    """Each key stands there three times, its values differ; ties of one tile of queries, and of none in another."""
    q, k, v, grad = drawn(count=50, length=50)
    k = k[:, :, torch.arange(50, device=DEVICE) // 3]
    kept = torch.where(torch.arange(50, device=DEVICE) < 34, 99, 4)[None]
    held(q, k, v, grad, kept)


def test_what_lies_in_pieces_is_taken() -> None:
    q, k, v, grad = (x.mT.contiguous().mT for x in drawn())
    held(q, k, v, grad.mean().expand_as(grad), torch.full((1, 37), 3, device=DEVICE))


def test_starts_may_lie_apart_and_beyond_all_keys() -> None:
    q, k, v, grad = drawn(rows=2, heads=1, count=20, length=20)
    kept = torch.full((1, 20), 3, device=DEVICE)
    held(q, k, v, grad, kept, torch.tensor([0, 1, 7, 1], device=DEVICE)[::2])
    held(q, k, v, grad, kept, torch.tensor([5, 2**40], device=DEVICE))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types_are_attended_with_their_thresholds(dtype: torch.dtype) -> None:
    q, k, v, grad = (x.to(dtype) for x in drawn(count=20, length=20))
    inputs = [x.requires_grad_() for x in (q, k, v)]
    kept = torch.full((20,), 5, device=DEVICE)
    out = defined(inputs, kept, backend="flash", most=5)
    exact = [x.detach().double().requires_grad_() for x in inputs]
    want = defined(exact, kept, backend="torch")
    assert out.dtype == dtype
    near: dict[str, Any] = {"rtol": 2e-2, "atol": 2e-2}
    torch.testing.assert_close(out.double(), want, **near)
    made = torch.autograd.grad(out, inputs, grad)
    for one, other in zip(made, torch.autograd.grad(want, exact, grad.double()), strict=True):
        torch.testing.assert_close(one.double(), other, rtol=5e-2, atol=5e-2)


def test_it_attends_again_where_many_rows_are_tied(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their cuts are then changed when the first attention has begun."""
    monkeypatch.setattr(impl, "AGAIN", 0)
    q, k, v, _ = (x.bfloat16() for x in drawn(count=20, length=20))
    k = k[:, :, torch.arange(20, device=DEVICE) // 4]
    kept = torch.full((20,), 6, device=DEVICE)
    out = topk_attention(q, k, v, kept, backend="flash")
    want = topk_attention(q.double(), k.double(), v.double(), kept, backend="torch")
    torch.testing.assert_close(out.double(), want, rtol=2e-2, atol=2e-2)


def test_what_the_kernels_do_not_take_is_refused() -> None:
    q, k, v, _ = drawn()
    kept = torch.full((37,), 3, device=DEVICE)
    with pytest.raises(InputError, match='backend "flash": takes bfloat16 and float16'):
        topk_attention(q, k, v, kept, backend="flash")
    q, k, v = (x.bfloat16()[..., :12] for x in (q, k, v))
    with pytest.raises(InputError, match="takes head dimensions of 16, 32, 64 and 128; got 12"):
        topk_attention(q, k, v, kept, backend="flash")
