"""Centred and rotated codes in steps of fixed shapes; what such a step cannot give is said, and goes on without."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch

from steps import attached, both, close, forced, half, prompt
from topkit.indexers import sign
from topkit.indexers.traits import Traits

pytest.importorskip("triton")


@pytest.fixture(scope="module")
def model() -> Any:
    return half(2)


@pytest.mark.slow
@pytest.mark.parametrize(
    "spec", ["shared(sign(center=True, hadamard=True))", "quantized(dtype='int4', center=True)"]
)
def test_the_mean_of_the_prompt_stays_while_steps_are_captured(model: Any, spec: str) -> None:
    given = prompt(2, padded=True)
    ours, theirs, captured = both(model, lambda _: forced(model, given, 11), spec=spec)
    close(ours, theirs)
    assert captured == 10 - 2
    with attached(model, spec.replace("center=True", "center=False")):
        other = forced(model, given, 11)
    assert (other - ours).abs().max() > 0.1, "it is the same without"


def test_layers_that_reuse_go_kernel_by_kernel(model: Any) -> None:
    ours, theirs, captured = both(
        model, lambda _: forced(model, prompt(), 5), spec="reuse(shared(sign()), every=2)"
    )
    assert torch.equal(ours, theirs) and captured == 0


@dataclass(frozen=True)
class reads_above(sign):
    """Says that a step of fixed shapes can give it, and reads what none does."""

    def traits(self) -> Traits:
        return replace(super().traits(), needs=frozenset({"upstream"}))

    def upstream_layer(self, layer: int) -> int | None:
        return layer - 1 if layer else None

    def pick(self, queries: Any, codes: Any, k: int, step: Any, pool: Any = None) -> Any:
        if step.layer:
            return step.upstream.indices
        return super().pick(queries, codes, k, step, pool)


@pytest.mark.slow
def test_a_step_that_reads_another_layers_choice_goes_kernel_by_kernel(model: Any) -> None:
    with attached(model, reads_above(), cuda_graph=False):
        theirs = forced(model, prompt(), 5)
    with attached(model, reads_above()) as ours:
        close(forced(model, prompt(), 5), theirs)
    assert ours.captured == 0
