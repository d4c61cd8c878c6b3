"""The largest of a row, found among groups, are those of a search of all."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from topkit.kernels.select_topk import largest as module
from topkit.kernels.select_topk.largest import largest


@settings(deadline=None, max_examples=60)
@given(
    st.integers(0, 2**31),
    st.sampled_from([(1,), (3,), (2, 3)]),
    st.integers(17, 700),
    st.integers(1, 40),
    st.sampled_from([2, 9, 10**6]),
    st.booleans(),
)
def test_values_are_those_of_a_search_of_all(seed, lead, length, k, kinds, ordered):
    rng = torch.Generator().manual_seed(seed)
    scores = torch.randint(-kinds, kinds, (*lead, length), generator=rng).float()
    scores[torch.rand(scores.shape, generator=rng) < 0.3] = -torch.inf
    k = min(k, length)
    many, module.MANY = module.MANY, 1
    try:
        values, places = largest(scores, k, sorted=ordered)
    finally:
        module.MANY = many
    assert torch.equal(scores.gather(-1, places), values)
    assert all(len(set(row.tolist())) == k for row in places.flatten(0, -2))
    if not ordered:
        values = values.sort(-1, descending=True).values
    assert torch.equal(values, scores.sort(-1, descending=True).values[..., :k])


@pytest.mark.parametrize("place", [0, 1023, 4099])
def test_nan_is_largest(place):
    scores = torch.randn(8, 4100)
    scores[3, place] = torch.nan
    values, places = largest(scores, 16)
    assert values[3, 0].isnan() and places[3, 0] == place
    assert not values[[0, 7]].isnan().any()


def test_groups_are_searched_where_rows_are_long_and_many():
    assert module._width(torch.empty(8, 4100), 17) == 16
    assert module._width(torch.empty(8, 4100), 2000) == 1
    assert module._width(torch.empty(1, 4100), 17) == 1
