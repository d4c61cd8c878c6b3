"""What selections keep on two models' tensors: the file is what it says, and the figures are those of slow sums."""

from __future__ import annotations

import pytest
import torch

from topkit.experiments.bench import kept
from topkit.experiments.bench.data import widened
from topkit.experiments.bench.kinds import KINDS
from topkit.experiments.bench.scale import Scale
from topkit.experiments.bench.session import Session
from topkit.experiments.capture.capture import Capture


def session() -> Session:
    return Session(torch.device("cpu"), Scale.tiny())


def test_the_file_is_small_and_has_real_keys() -> None:
    assert kept.FILE.stat().st_size < 8_000_000
    seen = kept.smollm2(session())
    assert seen.queries.shape == (5, 9, 1, 64) and seen.keys.shape == (5, 3, 4095, 64)
    assert seen.scaling == 64**-0.5
    opened = Capture.open(kept.FILE)
    assert (opened.samples, opened.layers) == ([0], [1, 8, 15, 22, 29])
    for row, layer in enumerate(opened.layers):
        assert torch.equal(opened.load(0, layer).keys[0].float(), seen.keys[row])
    weights = (seen.queries[:, ::3] @ seen.keys.mT * seen.scaling).softmax(-1)
    assert weights[..., 0].mean() > 0.1  # a sink, as of no model made for this


@pytest.mark.parametrize("spec", ["shared(sign())", "quantized(dtype='int4')", "shared(exact())"])
def test_what_is_kept_is_the_mass_of_the_chosen_slots(spec: str) -> None:
    at, k = session(), 12
    seen = kept.smollm2(at)
    queries, keys, _ = widened(at, seen.queries[2:3], seen.keys[2:3], 300)
    best = kept.Best.of(queries, keys, k, seen.scaling)
    slots = kept.chosen(at, spec, queries, keys, k, seen.scaling)
    ours = best.fidelity(queries, keys, slots, k)
    ratios, masses = [], []
    for head in range(queries.shape[1]):
        scores = keys[0, head // 4].double() @ queries[0, head, 0].double() * seen.scaling
        weights = scores.softmax(0)
        own = slots[0, head * slots.shape[1] // queries.shape[1], 0]
        masses.append(weights[own].sum())
        ratios.append(weights[own].sum() / weights.topk(k).values.sum())
    assert ours["mass"] == pytest.approx(float(torch.stack(masses).mean()), abs=1e-4)
    assert ours["mass_ratio"] == pytest.approx(float(torch.stack(ratios).mean()), abs=1e-4)


@pytest.mark.slow
def test_rows_stand_side_by_side_and_serve_the_steps() -> None:
    at = session()
    (case,) = kept.kept_cases(at)
    found = list(case[1]())
    assert [row["what"] for row in found] == [f"{name}, 512" for name in kept.SPECS]
    for row, name in zip(found, kept.SPECS, strict=True):
        assert row["median"] <= 1.001 and row["smollm2_mass_ratio"] is not None
        assert 0 < row["mass_ratio"] <= row["shared_mass_ratio"] <= 1.001
        assert row["useless"] == (row["smollm2_mass_ratio"] < 0.9)
        assert at.kept[name, 512]["smollm2_mass"] == row["smollm2_mass"]
    assert {*kept.SPECS} == {n for n, kind in KINDS.items() if kind.dtype != "lightning"} | {
        "exact"
    }
