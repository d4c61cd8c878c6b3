"""What was observed of an answer: which of the queries count, and their means."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from topkit.experiments.evaluate.observer import Observer, means
from topkit.experiments.evaluate.streams import Stream
from topkit.experiments.runs.cells import parse_cells
from topkit.experiments.runs.judged import COSTS, Judged
from topkit.fidelity import METRICS
from topkit.indexers import Step
from topkit.indexers.spec import parse


def slow_mean(values, trivial, real):
    """Of one question and head: over real queries that are not trivial, or all where all are."""
    counted = [i for i, yes in enumerate(real) if yes]
    useful = [i for i in counted if not trivial[i]]
    numbers = [values[i] for i in useful or counted if not math.isnan(values[i])]
    return sum(numbers) / len(numbers) if numbers else math.nan


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 3), st.integers(1, 2), st.integers(1, 5))
def test_means_leave_out_what_is_trivial_and_what_has_no_meaning(seed, batch, heads, count):
    g = torch.Generator().manual_seed(seed)
    recall = torch.rand(batch, heads, count, generator=g)
    recall[torch.rand(recall.shape, generator=g) < 0.3] = math.nan
    kept = torch.randint(0, 9, recall.shape, generator=g)
    trivial = torch.rand(batch, 1, count, generator=g).expand(recall.shape) < (seed % 3) / 2
    real = torch.arange(count) < torch.randint(1, count + 1, (batch, 1), generator=g)
    judged = Judged("group", "group", {"recall": recall, "kept": kept, "trivial": trivial})
    mean = means(judged, real)
    assert mean[:2] == ("group", "group")
    for b in range(batch):
        for h in range(heads):
            lines = trivial[b, h].tolist(), real[b].tolist()
            for name, column in (("recall", recall), ("kept", kept)):
                expected = slow_mean(column[b, h].tolist(), *lines)
                assert float(mean.columns[name][b, h, 0]) == pytest.approx(expected, nan_ok=True)
            every = all(t for t, yes in zip(*lines, strict=True) if yes)
            assert bool(mean.columns["trivial"][b, h, 0]) == every


@pytest.mark.parametrize("each", [True, False])
def test_rows_are_of_the_answers_own_queries(each):
    """Two questions of one batch, whose answers have 3 and 1 tokens."""
    index = parse("sign()").build(torch.ones(2, 1, 4, 8), Step())
    (cell,) = parse_cells("sign()", 5, dense=False)
    stream = Stream([cell, cell], 20, {3: index}, 0)
    shape = (2, 1, 3)
    columns = dict.fromkeys((*METRICS, *COSTS), torch.arange(6.0).view(shape))
    columns |= {"visible": torch.full(shape, 9), "trivial": torch.zeros(shape).bool()}
    observer = Observer.of([stream], 3)
    observer.board.note(3, [0, 1], 0, Judged("head", "head", columns))
    real = torch.tensor([[True, True, True], [True, False, False]])
    (table,) = observer.tables([7, 2], real, 20, each, "answer")
    names = ["question", "position", "positions", "recall", "layer", "k", "indexer", "index_bytes"]
    said = (3, 5, "sign()", index.nbytes / 2)
    expected = (
        [(7, 20, 1, 0.0), (7, 21, 1, 1.0), (7, 22, 1, 2.0), (2, 20, 1, 3.0)]
        if each
        else [(7, None, 3, 1.0), (2, None, 1, 3.0)]
    )
    assert [tuple(row[n] for n in names) for row in table.to_pylist()] == [
        (*row, *said) for row in expected
    ]
