"""Identities of arXiv 2512.07647: total variation = 1 - mass and KL = -ln mass, of whatever was selected."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from topkit.fidelity import judge, truth
from topkit.indexers import Selection


@st.composite
def problems(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Queries, keys and values in float64 at some spread of scores, and slots of which no list has one twice."""
    seed, length = draw(st.integers(0, 10**6)), draw(st.integers(2, 50))
    groups, per, count = draw(st.integers(1, 2)), draw(st.integers(1, 3)), draw(st.integers(1, 3))
    g = torch.Generator().manual_seed(seed)
    spread = draw(st.sampled_from([0.0, 0.3, 3.0]))
    queries = spread * torch.randn(1, groups * per, count, 6, generator=g)
    keys, values = torch.randn(2, 1, groups, length, 6, generator=g)
    k = draw(st.integers(1, length))
    slots = torch.rand(1, groups * per, count, length, generator=g).argsort(-1)[..., :k]
    return queries, keys, values, slots


@settings(max_examples=60, deadline=None)
@given(problems())
def test_what_was_kept_says_how_far_two_softmaxes_are_apart(
    problem: tuple[Tensor, Tensor, Tensor, Tensor],
):
    """Also of lists that are not the best: nothing in the proof needs that."""
    queries, keys, values, slots = problem
    length, k = keys.shape[2], slots.shape[-1]
    stop = torch.full((1, queries.shape[2]), length)
    scaling = queries.shape[-1] ** -0.5
    exact = truth(queries, keys, values, k, scaling=scaling, stop=stop)
    judged = judge(exact, queries, keys, values, Selection(slots), k)
    mass = judged["mass"].double()

    per = queries.shape[1] // keys.shape[1]
    scores = queries.double() @ keys.double().repeat_interleave(per, 1).mT * scaling
    dense = scores.softmax(-1)
    kept = torch.zeros_like(dense, dtype=torch.bool).scatter(-1, slots, True)
    sparse = scores.masked_fill(~kept, -torch.inf).softmax(-1)
    apart = (sparse - dense).abs().sum(-1) / 2
    divergence = (sparse * (sparse.clamp_min(1e-300) / dense).log()).sum(-1)

    near: Any = {"atol": 2e-6, "rtol": 1e-5}
    assert torch.allclose(apart, 1 - mass, **near)
    assert torch.allclose(divergence, -mass.log(), **near)
    assert torch.allclose(1 - (-divergence).exp(), apart, **near)

    # The output is off by so much of the distance between what was kept and what was not.
    whole = values.double().repeat_interleave(per, 1)
    off = (sparse @ whole - dense @ whole).norm(dim=-1)
    left = dense.masked_fill(kept, 0)
    tail = left @ whole / left.sum(-1, keepdim=True).clamp_min(1e-300)
    bound = apart * (tail - sparse @ whole).norm(dim=-1)
    assert torch.allclose(off, bound, **near)
    error = judged["output_error"].double() * (dense @ whole).norm(dim=-1)
    assert torch.allclose(error, bound, atol=2e-5, rtol=1e-4)
