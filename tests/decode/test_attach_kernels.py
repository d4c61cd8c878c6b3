"""An attached model decodes through kernels, on a GPU or in Triton's interpreter."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from device import DEVICE
from generation import generated
from tiny import lightning_for, prompt, tiny
from topkit.errors import InputError
from topkit.experiments.decode.attach import attach

pytest.importorskip("triton")


@pytest.mark.slow
@pytest.mark.parametrize(
    "spec",
    ["shared(sign())", "sign", "shared(quantized(dtype='int4'))", "keep(shared(sign()), sink=1)"],
)
def test_kernels_generate_what_the_definitions_do(spec: str) -> None:
    """In Triton's interpreter, or on a GPU where there is one."""
    model = tiny(head_dim=64, num_hidden_layers=1).to(DEVICE, torch.float16)
    given = {name: x.to(DEVICE) for name, x in prompt(2, 14, padded=True).items()}
    with attach(model, spec, k=5, backend="torch"):
        want = generated(model, given, new=3)
    with attach(model, spec, k=5, backend="triton"):
        found = generated(model, given, new=3)
    assert torch.equal(found[0], want[0])
    for a, b in zip(found[1], want[1], strict=True):
        torch.testing.assert_close(a, b, rtol=2e-2, atol=2e-2)


def test_a_kernel_that_cannot_run_is_refused_at_once(model: Any, monkeypatch: Any) -> None:
    with pytest.raises(InputError, match="backend must be one of"):
        attach(model, "sign", k=4, backend="cuda")
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    with pytest.raises(InputError, match=r"Triton is not installed|needs tensors on a CUDA GPU"):
        attach(model, "sign", k=4, backend="triton")


@pytest.mark.parametrize(
    ("changes", "dtype", "k", "message"),
    [
        ({"head_dim": 64}, torch.float32, 4, "queries must be bfloat16 or float16"),
        ({}, torch.float16, 4, "keys must have 64 or 128 dimensions"),
        ({"head_dim": 64}, torch.float16, 4097, "k must be at most 4096; got 4097"),
    ],
)
def test_what_kernels_do_not_take_is_refused_before_a_prompt(
    changes: dict[str, Any], dtype: torch.dtype, k: int, message: str
) -> None:
    other = tiny(num_hidden_layers=1, **changes).to(DEVICE, dtype)
    with pytest.raises(InputError, match=f'backend "triton": {message}'):
        attach(other, "sign()", k=k, backend="triton")
    attach(other, "sign()", k=k, backend="auto").detach()
    assert model_of_its_own(other)


@pytest.mark.parametrize(
    ("spec", "k", "message"),
    [
        ("refine(sign(), factor=2)", 3000, "k must be at most 4096; got 6000"),
        ("lightning", 4, "no Triton kernel"),
    ],
)
def test_what_an_indexers_own_kernels_do_not_take_is_refused_too(
    spec: str, k: int, message: str, tmp_path: Any
) -> None:
    other = tiny(num_hidden_layers=1, head_dim=64).to(DEVICE, torch.float16).train()
    spec = lightning_for(tmp_path, dim=64) if spec == "lightning" else spec
    with pytest.raises(InputError, match=message):
        attach(other, spec, k=k, backend="triton")
    assert model_of_its_own(other) and other.training


@pytest.mark.parametrize(
    ("spec", "k", "how"),
    [
        ("streaming_llm(sink=1, window=6)", 5000, {}),
        ("quest(page_size=4)", 5000, {}),
        ("sign()", 5, {"observe": "shadow"}),  # a float32 model, whose attention stays its own
    ],
)
def test_what_kernels_are_not_asked_for_is_not_refused(
    spec: str, k: int, how: dict[str, Any]
) -> None:
    dtype = torch.float32 if how else torch.float16
    other = tiny(num_hidden_layers=1, head_dim=64).to(DEVICE, dtype)
    with attach(other, spec, k=k, backend="triton", **how) as attached:
        given = {name: x.to(DEVICE) for name, x in prompt(1, 14).items()}
        generated(other, given, new=3)
    if how:
        assert set(attached.fidelity()["call"].to_pylist()) == {1}  # nothing of the trial


def model_of_its_own(model: Any) -> bool:
    """Whether nothing of an attachment is left."""
    hooks = [m for m in model.modules() if m._forward_pre_hooks]
    return model.config._attn_implementation == "sdpa" and not hooks
