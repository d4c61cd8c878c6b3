"""Lists compared: a slow rendering by Python's sets, ties included."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from topkit.experiments.compare.lists import Scores, compared
from topkit.kernels.select_topk import select_topk


def slow(own: list[int], other: list[int], scores: list[float] | None) -> tuple[float, bool]:
    """Recall and whether the set is another, of one list."""
    mine, theirs = ({slot for slot in some if slot >= 0} for some in (own, other))
    hits = mine & theirs
    if scores is not None and mine:
        last = min(scores[slot] for slot in mine)
        hits |= {slot for slot in theirs if scores[slot] >= last}
    recall = min(len(hits), len(mine)) / len(mine) if mine else math.nan
    return recall, mine != theirs


def of_each(own: Tensor, other: Tensor, scores: Tensor | None) -> list[tuple[float, bool]]:
    heads = max(own.shape[1], other.shape[1])
    out = []
    for head in range(heads):
        for query in range(own.shape[2]):
            a, b = (x[0, head * x.shape[1] // heads, query].tolist() for x in (own, other))
            known = scores
            row = (
                None if known is None else known[0, head * known.shape[1] // heads, query].tolist()
            )
            out.append(slow(a, b, row))
    return out


@settings(deadline=None, max_examples=60)
@given(
    st.integers(0, 10**6),
    st.sampled_from([(1, 1), (1, 4), (4, 1), (2, 4), (4, 2), (3, 3)]),
    st.integers(1, 9),
    st.booleans(),
)
def test_recall_and_change_are_those_of_sets(
    seed: int, lists: tuple[int, int], k: int, known: bool
) -> None:
    g = torch.Generator().manual_seed(seed)
    # Few levels: most lists end between equal scores.
    scores = torch.randint(0, 4, (1, lists[0], 5, 13), generator=g).float()
    stops = torch.randint(1, 14, (5,), generator=g)
    scores = scores.masked_fill(torch.arange(13) >= stops[:, None], -math.inf)
    own = select_topk(scores, k)
    drawn = torch.rand(1, lists[1], 5, 13, generator=g)
    drawn = drawn.masked_fill(torch.arange(13) >= stops[:, None], -math.inf)
    other = select_topk(drawn, k)
    other[torch.rand(other.shape, generator=g) < 0.2] = -1
    mine = Scores.of(scores, own)
    got = compared(own, other, mine if known else None)
    wanted = of_each(own, other, scores if known else None)
    assert got.recall.flatten().tolist() == pytest.approx([r for r, _ in wanted])
    assert got.changed.flatten().tolist() == [c for _, c in wanted]


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10**6), st.integers(1, 14))
def test_ties_and_mass_are_those_of_the_scores(seed: int, k: int) -> None:
    g = torch.Generator().manual_seed(seed)
    scores = torch.randint(0, 5, (1, 2, 3, 13), generator=g).float()
    own = select_topk(scores, k)
    mine = Scores.of(scores, own)
    for head in range(2):
        for query in range(3):
            row = sorted(scores[0, head, query].tolist(), reverse=True)
            tied = k < 13 and row[k - 1] == row[k]
            assert bool(mine.tied[0, head, query]) == tied
            sums = sum(math.exp(x) for x in row[:k]) / sum(map(math.exp, row))
            assert float(mine.mass(own)[0, head, query]) == pytest.approx(sums)


def test_a_list_of_nothing_has_no_recall() -> None:
    own, other = torch.full((1, 1, 2, 3), -1), torch.tensor([[[[0, 1, 2], [-1, -1, -1]]]])
    got = compared(own, other, None)
    assert got.recall.isnan().all() and got.changed.flatten().tolist() == [True, False]
