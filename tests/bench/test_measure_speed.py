"""The script that `measure` is timed against computes the same columns."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import topkit
from topkit.experiments.bench import by_hand, measure_speed
from topkit.experiments.bench.scale import Scale
from topkit.experiments.bench.session import Session

KS = (5, 20, 60)


@pytest.fixture(scope="module")
def tensors() -> measure_speed.Tensors:
    return measure_speed.drawn(Session(torch.device("cpu"), Scale.tiny()))


@pytest.mark.parametrize("recipe", measure_speed.BY_HAND)
def test_the_script_gives_the_columns_of_measure(
    recipe: str, tensors: measure_speed.Tensors
) -> None:
    capture = topkit.Capture.from_tensors(tensors.queries, tensors.keys, tensors.values)
    measured = topkit.measure(capture, recipe, list(KS))
    assert measured is not None
    three = (tensors.queries, tensors.keys, tensors.values)
    columns = by_hand.measured(*three, measure_speed.BY_HAND[recipe], KS)
    for k, by_name in zip(KS, columns, strict=True):
        rows = measured.table.filter(
            (measured.table["k"].to_numpy() == k) & (np.array(measured.table["level"]) == "head")
        ).sort_by([("head", "ascending"), ("position", "ascending")])
        for name, column in by_name.items():
            np.testing.assert_allclose(
                rows[name].to_numpy(), column.flatten().numpy(), rtol=2e-3, atol=2e-5, err_msg=name
            )


def test_keys_have_heavier_tails_than_a_normal(tensors: measure_speed.Tensors) -> None:
    def kurtosis(x: torch.Tensor) -> float:
        return ((x - x.mean()) ** 4).mean().item() / x.var().item() ** 2

    assert kurtosis(tensors.values) < 3.3 < 5 < kurtosis(tensors.keys)


def test_topk_alone_gives_the_best_keys(tensors: measure_speed.Tensors) -> None:
    (best,) = measure_speed.topk_alone(tensors, [7])
    heads, groups = tensors.queries.shape[1], tensors.keys.shape[1]
    for head in range(heads):
        group, place = divmod(head, heads // groups)
        scores = tensors.queries[0, head] @ tensors.keys[0, group].T
        count = scores.shape[0]
        ours = best[0, group, place * count : (place + 1) * count]
        assert torch.equal(ours, scores.topk(7).indices)
