"""What a selection leaves of the answer's key, against the formula in float64, one query at a time."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from topkit.fidelity import answer_key, judge, of_units, truth
from topkit.fidelity.truth import with_sinks
from topkit.indexers import Rest, Selection
from topkit.kernels.gather_attention import Softmax
from topkit.kernels.score import score

SCALING = 0.4


@st.composite
def problems(draw: Any) -> tuple[Any, ...]:
    """Odd shapes, ties, lists padded with -1 and shared, estimators, sinks and a softcap; and wanted slots."""
    groups, per = draw(st.sampled_from([(1, 1), (2, 1), (2, 3), (1, 4)]))
    batch, count = draw(st.integers(1, 2)), draw(st.integers(1, 3))
    length = draw(st.integers(count + 1, 20))
    g = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))
    queries = torch.randn(batch, groups * per, count, 5, generator=g)
    # Some weights are then below what float32 holds.
    queries = queries * draw(st.sampled_from([1.0, 60.0]))
    keys = torch.randn(batch, groups, length, 5, generator=g)
    if draw(st.booleans()):  # ties: few different keys
        keys = keys[:, :, torch.randint(0, max(1, length // 4), (length,), generator=g)]
    values = torch.randn(batch, groups, length, 3, generator=g)
    lists, wide = draw(st.sampled_from(sorted({1, groups, groups * per}))), draw(st.integers(1, 9))
    indices = torch.full((batch, lists, count, wide), -1)
    for place in torch.cartesian_prod(*map(torch.arange, indices.shape[:3])).view(-1, 3).tolist():
        seen = torch.randperm(length - count + 1 + place[2], generator=g)
        kept = int(torch.randint(0, wide + 1, (1,), generator=g))
        indices[tuple(place)][: min(kept, len(seen))] = seen[:kept]
    logs = torch.randn(indices.shape, generator=g) if draw(st.booleans()) else None
    kind, pseudo = (
        draw(st.sampled_from(["none", "logits", "share"])),
        (batch, groups * per, count, 2),
    )
    rest = None
    if kind != "none":
        numbers = torch.rand(pseudo, generator=g) * (0.4 if kind == "share" else 3)
        rest = Rest(torch.randn(*pseudo, 3, generator=g), **{kind: numbers})
    sinks = torch.randn(groups * per, generator=g) if draw(st.booleans()) else None
    softmax = Softmax(sinks, draw(st.sampled_from([None, 3.0])))
    slots = torch.randint(-1, length - count + 1, (batch, count), generator=g)
    return queries, keys, values, Selection(indices, logs, rest), softmax, slots


def slowly(problem: tuple[Any, ...]) -> dict[str, list[float]]:
    """The formula: exp of a logit over the sum of all that stand in the softmax with it."""
    queries, keys, _, selection, softmax, slots = problem
    (batch, heads, count, _), length = queries.shape, keys.shape[2]
    out: dict[str, list[float]] = {"hit": [], "w": [], "ws": []}
    for b in range(batch):
        for h in range(heads):
            own = keys[b, h * keys.shape[1] // heads].double()
            at = h * selection.indices.shape[1] // heads
            for i in range(count):
                logits = SCALING * (own @ queries[b, h, i].double())
                if softmax.softcap is not None:
                    logits = softmax.softcap * torch.tanh(logits / softmax.softcap)
                sink = [] if softmax.sinks is None else [float(softmax.sinks[h])]
                seen, slot = range(length - count + 1 + i), int(slots[b, i])
                chosen = [s for s in selection.indices[b, at, i].tolist() if s >= 0]
                extra = {s: 0.0 for s in chosen}
                if selection.log_weights is not None:
                    lines = selection.indices[b, at, i], selection.log_weights[b, at, i]
                    extra = {int(s): float(x) for s, x in zip(*lines, strict=True) if s >= 0}
                kept = {s: float(logits[s]) + extra[s] for s in chosen}
                others, share = list(sink), 1.0
                if selection.rest is not None and selection.rest.logits is not None:
                    others += selection.rest.logits[b, h, i].tolist()
                if selection.rest is not None and selection.rest.share is not None:
                    share -= float(selection.rest.share[b, h, i].sum())
                none = slot < 0
                dense = torch.tensor([*(float(logits[s]) for s in seen), *sink]).double()
                sparse = torch.tensor([*kept.values(), *others]).double()
                w = math.nan if none else math.exp(float(logits[slot]) - float(dense.logsumexp(0)))
                ws = math.nan if none else 0.0
                if slot in kept:
                    ws = share * math.exp(kept[slot] - float(sparse.logsumexp(0)))
                out["hit"].append(math.nan if none else float(slot in kept))
                out["w"].append(w)
                out["ws"].append(ws)
    return out


@settings(max_examples=150, deadline=None)
@given(problems(), st.booleans(), st.booleans())
def test_columns_are_those_of_the_formula(
    problem: tuple[Any, ...], known: bool, weighed: bool
) -> None:
    queries, keys, values, selection, softmax, slots = problem
    wide = selection.indices.shape[-1]
    scores = score(queries, keys) if known or softmax.softcap is not None else None
    if scores is not None:
        scores = softmax.capped_scores(scores, SCALING)
    exact = truth(queries, keys, values, wide, scaling=SCALING, scores=scores)
    sinks = None
    if softmax.sinks is not None:
        sinks = softmax.of_heads(exact.scores)[..., 0]
        exact = with_sinks(exact, sinks)
    mass = None
    if weighed:
        judged = judge(exact, queries, keys, None, selection, wide, scores=scores)
        mass = judged["mass"], judged["mass_estimate"]
    ours = answer_key(
        exact, queries, keys, selection, slots, scores=scores, sinks=sinks, weighed=mass
    )
    for name, line in slowly(problem).items():
        assert ours[name].flatten().tolist() == pytest.approx(line, abs=2e-4, nan_ok=True), name
    units = of_units(ours, selection.indices.shape[1])
    assert (units["hit"].nan_to_num(0.5) * 2 == (units["hit"].nan_to_num(0.5) * 2).round()).all()
    by_list = ours["ws"].unflatten(1, (selection.indices.shape[1], -1))
    assert units["ws"].equal(by_list.mean(2)) or by_list.isnan().any()


def test_a_weight_that_float32_has_no_number_for_is_whole_where_it_alone_was_chosen() -> None:
    queries = torch.tensor([[[[200.0]]]])
    keys = torch.tensor([[[[1.0], [0.0], [-1.0]]]])
    exact = truth(queries, keys, None, 1, scaling=1.0, start=None, stop=torch.tensor([[3]]))
    chosen = Selection(torch.tensor([[[[2]]]]))
    judged = judge(exact, queries, keys, None, chosen, 1)
    assert float(judged["mass"]) == 0.0
    mass = judged["mass"], judged["mass_estimate"]
    found = answer_key(exact, queries, keys, chosen, torch.tensor([[2]]), weighed=mass)
    assert {name: float(x) for name, x in found.items()} == {"hit": 1.0, "w": 0.0, "ws": 1.0}
