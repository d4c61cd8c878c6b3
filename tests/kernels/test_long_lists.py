"""Lists that are long beside their cache give what gathering gives, whatever the other slots hold."""

import math
from typing import Any
from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from topkit.kernels.gather_attention import attend, gather_attention, gather_scores, long_lists

HEADS, KV_HEADS, WIDTH = 4, 2, 8


def _one_query(query, keys, values, slots, scaling):
    """Attention of one query [D] over the slots of one list, by the formula, in float64."""
    logits = [scaling * float(query.double() @ keys[slot].double()) for slot in slots]
    top = max(logits)
    weights = [math.exp(logit - top) for logit in logits]
    terms = [weight * values[slot].double() for weight, slot in zip(weights, slots, strict=True)]
    return sum(terms) / sum(weights)


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 99),
    rows=st.integers(1, 2),
    own_cache=st.booleans(),
    length=st.integers(1, 40),
    lists=st.sampled_from((HEADS, KV_HEADS, 1)),
    count=st.integers(1, 9),
    chosen=st.integers(1, 40),
)
def test_any_list_gives_what_the_formula_says(seed, rows, own_cache, length, lists, count, chosen):
    generator = torch.Generator().manual_seed(seed)
    caches = rows if own_cache else 1
    queries = torch.randn(rows, HEADS, count, WIDTH, generator=generator)
    keys = torch.randn(caches, KV_HEADS, length, WIDTH, generator=generator)
    values = torch.randn(caches, KV_HEADS, length, 3, generator=generator)
    chosen = min(chosen, length)
    order = torch.rand(rows, lists, count, length, generator=generator).argsort(-1)
    indices = order[..., :chosen].clone()
    indices[..., 1:][torch.rand(indices[..., 1:].shape, generator=generator) < 0.3] = -1
    out = gather_attention(queries, keys, values, indices, scaling=0.5)
    for row in range(rows):
        for head in range(HEADS):
            for query in range(count):
                slots = [x for x in indices[row, head * lists // HEADS, query].tolist() if x >= 0]
                cache, group = row % caches, head * KV_HEADS // HEADS
                wanted = _one_query(
                    queries[row, head, query], keys[cache, group], values[cache, group], slots, 0.5
                )
                torch.testing.assert_close(
                    out[row, head, query].double(), wanted, atol=1e-5, rtol=1e-5
                )


@pytest.fixture
def case():
    generator = torch.Generator().manual_seed(0)
    queries = torch.randn(1, HEADS, 8, WIDTH, generator=generator)
    keys = torch.randn(1, KV_HEADS, 64, WIDTH, generator=generator)
    values = torch.randn(1, KV_HEADS, 64, WIDTH, generator=generator)
    indices = torch.rand(1, HEADS, 8, 63, generator=generator).argsort(-1)[..., :32]
    return queries, keys, values, indices  # slot 63 is never chosen


def test_long_lists_are_taken_as_long(case):
    *_, indices = case
    assert long_lists.long(indices, 64, KV_HEADS)
    assert not long_lists.long(indices[..., :3], 64, KV_HEADS)
    assert not long_lists.long(indices[:, :, :1, :4], 64, KV_HEADS)  # 8 slots gathered a KV head


@pytest.mark.parametrize("trash", [math.nan, math.inf, -math.inf])
def test_slots_that_nobody_chose_may_hold_anything(case, trash):
    queries, keys, values, indices = case
    clean = gather_attention(queries, keys, values, indices, scaling=0.5)
    keys[..., 63, :], values[..., 63, :] = trash, trash
    torch.testing.assert_close(gather_attention(queries, keys, values, indices, scaling=0.5), clean)


def test_both_ways_agree_on_scores_weights_and_rest(case):
    queries, keys, values, indices = case
    generator = torch.Generator().manual_seed(1)
    options: dict[str, Any] = {
        "log_weights": torch.rand(1, HEADS, 8, 32, generator=generator),
        "rest_values": torch.randn(1, HEADS, 8, 2, WIDTH, generator=generator),
        "rest_logits": torch.randn(1, HEADS, 8, 2, generator=generator),
    }
    indices[..., 7] = -1
    scores = gather_scores(queries, keys, indices)
    out = attend(scores, values, indices, scaling=0.5, **options)
    with patch.object(long_lists, "LONG", 0):  # no list is long
        gathered = gather_scores(queries, keys, indices)
        torch.testing.assert_close(scores, gathered)
        torch.testing.assert_close(out, attend(gathered, values, indices, scaling=0.5, **options))
