"""StreamingLLM, arXiv 2309.17453, section 3.2: attention sinks and a rolling window, and nothing between them."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plainly import lists, stream
from topkit.contract.draw import RANDOM
from topkit.indexers.spec import parse


def kept(first: int, stop: int, sink: int, window: int | None, k: int) -> list[int]:
    """Of the slots first <= s < stop: sinks as far as k goes, then the newest as far as it still goes."""
    slots = []
    for slot in range(first, stop):
        if slot - first < sink and len(slots) < k:
            slots.append(slot)
    newest = k - len(slots) if window is None else min(window, k - len(slots))
    for slot in range(stop - 1, first - 1, -1):
        if newest > 0 and slot not in slots:
            slots.append(slot)
            newest -= 1
    return sorted(slots)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 6), st.one_of(st.none(), st.integers(1, 9)), st.integers(1, 24), st.data())
def test_sinks_and_the_newest_of_each_query(sink, window, k, data):
    recipe = parse(f"streaming_llm(sink={sink}, window={window})")
    start = data.draw(st.lists(st.integers(0, 12), min_size=1, max_size=2))
    one = RANDOM(recipe, length=20, heads=(4, 2), start=start)
    count = data.draw(st.integers(1, 3))
    got = one.ask(recipe, one.build(recipe), k, count).indices
    for row, first in enumerate(start):
        for head in range(got.shape[1]):
            for query in range(count):
                slots = [slot for slot in got[row, head, query].tolist() if slot >= 0]
                assert sorted(slots) == kept(first, 20 - count + 1 + query, sink, window, k)


@pytest.mark.parametrize(("sink", "window", "k"), [(4, None, 10), (3, 5, 20), (2, 6, 5), (5, 2, 3)])
def test_the_window_rolls_as_tokens_come(sink, window, k):
    recipe = parse(f"streaming_llm(sink={sink}, window={window})")
    one = stream(recipe, 1)
    index = one.build(recipe, [1])
    for length in range(1, one.length + 1):
        if length > 1:
            one.append(recipe, index, length)
        for slots in lists(one.ask(recipe, index, k)):
            assert sorted(slots) == kept(0, length, sink, window, k)


def test_another_number_of_sinks_chooses_otherwise():
    recipe = parse("streaming_llm(sink=3)")
    one = stream(recipe, 1)
    (got, *_) = lists(one.ask(recipe, one.build(recipe), 9))
    assert sorted(got) not in [kept(0, one.length, sink, None, 9) for sink in (0, 2, 4)]
