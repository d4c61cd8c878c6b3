"""What heads do at a question, against a slow rendering of each measure."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from tests.tiny import tiny
from topkit.experiments.model.record import record
from topkit.experiments.tasks import Prompt
from topkit.experiments.train.head_measures import (
    ENTROPY,
    READING,
    RELATIVE,
    SINK,
    head_measures,
    mass_at,
    places_of,
)


class Question:
    ids, answer_ids = (9, 9, 4), (30, 31)


class Asked:
    ids = (3, 5, 30, 31, 7, 30, 31, 8, 8, 2, 3, 4, 5)
    questions = (Question(),)


def weights(model: Any, ids: list[int], layer: int, head: int, at: int) -> list[float]:
    """A head's softmax at a position, in Python."""
    seen = record(model, torch.tensor([ids]), torch.tensor([at]))[layer]
    group = head // (seen.queries.shape[1] // seen.keys.shape[1])
    query, keys = seen.queries[0, head, 0].double(), seen.keys[0, group].double()
    logits = [seen.scaling * float(query @ keys[s]) for s in range(at + 1)]
    most = max(logits)
    each = [math.exp(x - most) for x in logits]
    return [x / sum(each) for x in each]


def test_measures_are_those_of_a_slow_rendering() -> None:
    model, prompt = tiny("llama"), Asked()
    made = head_measures(model, prompt, ["1%", "20%"])  # type: ignore[arg-type]
    ids = [*prompt.ids, *Question.ids, *Question.answer_ids]
    begin = len(prompt.ids)
    steps = range(begin, len(ids) - 1)
    for layer in range(2):
        for head in range(4):
            rows = {at: weights(model, ids, layer, head, at) for at in steps}
            entropy = {at: -sum(w * math.log(w) for w in row if w > 0) for at, row in rows.items()}
            expected = {
                ENTROPY: np.mean(list(entropy.values())),
                RELATIVE: np.mean([h / math.log(at + 1) for at, h in entropy.items()]),
                SINK: np.mean([row[0] for row in rows.values()]),
                # The last place of the answer in the haystack: slots 5 and 6.
                READING: (rows[begin + 2][5] + rows[begin + 3][6]) / 2,
                mass_at("1%"): np.mean([max(row) for row in rows.values()]),
                mass_at("20%"): np.mean(
                    [sum(sorted(row)[-math.ceil((at + 1) / 5) :]) for at, row in rows.items()]
                ),
            }
            for name, value in expected.items():
                assert made[name][layer][head] == pytest.approx(float(value), rel=1e-4), name


def test_answers_are_found_where_they_stand_last() -> None:
    assert places_of([1, 2, 3, 2, 3], [2, 3]) == [3, 4]
    assert places_of([1, 2, 3], [9, 3]) == [-1, 2]  # cut otherwise at its first token
    assert places_of([1, 2], [7]) == [-1] and places_of([], [1, 2]) == [-1, -1]


def test_an_answer_that_is_not_there_is_read_by_nobody() -> None:
    class Elsewhere(Asked):
        ids = (3, 5, 7, 8)

    made = head_measures(tiny("llama"), Elsewhere(), ["1%"])  # type: ignore[arg-type]
    assert np.isnan(made[READING]).all() and np.isfinite(made[ENTROPY]).all()
    assert Prompt  # the shape that these stand for
