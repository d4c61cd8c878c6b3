"""Selections of all recipes, stacked, give what each gives alone over its own whole cache."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from topkit.errors import InputError
from topkit.experiments.evaluate.lists import Chosen, require_choices, stacked
from topkit.experiments.evaluate.shared_cache import SharedCache
from topkit.indexers.base import Cache, Rest, Selection
from topkit.indexers.spec import parse
from topkit.kernels.gather_attention import gather_attention
from topkit.kernels.rounding import norms
from topkit.kernels.score import score

ROWS, HEADS, GROUPS, WIDTH, COUNT = 5, 4, 2, 16, 3
SCALING = 0.3


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape)


def shared(prefix: int, tail: int, dtype: torch.dtype = torch.float32) -> SharedCache:
    torch.manual_seed(0)
    parts = [
        Cache(*(normal(n, GROUPS, t, WIDTH).to(dtype) for _ in range(2)))
        for n, t in ((1, prefix), (ROWS, tail))
    ]
    return SharedCache(parts[0], norms(parts[0].keys), parts[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("prefix", "tail"), [(30, 4), (1, 3), (17, 1)])
def test_a_shared_cache_is_the_whole_of_both(prefix: int, tail: int, dtype: torch.dtype) -> None:
    cache = shared(prefix, tail, dtype)
    queries = normal(ROWS, HEADS, COUNT, WIDTH)
    assert cache.keys.shape == (ROWS, GROUPS, prefix + tail, WIDTH)
    torch.testing.assert_close(cache.scores(queries), score(queries, cache.keys))
    torch.testing.assert_close(cache.norms(), norms(cache.keys))
    values = cache.values.float().repeat_interleave(HEADS // GROUPS, 1)
    for at, stop in ((0, prefix + tail), (0, prefix), (prefix, prefix + tail), (1, prefix + 1)):
        weights = torch.rand(ROWS, HEADS, COUNT, stop - at)
        torch.testing.assert_close(cache.weigh(weights, at), weights @ values[:, :, at:stop])
    for stop in (prefix, prefix + 1, prefix + tail):
        assert cache.until(stop).keys.equal(cache.keys[:, :, :stop])
    assert cache.since(prefix).equal(cache.keys[:, :, prefix:])
    assert cache.of(slice(1, 3)).keys.equal(cache.keys[1:3])
    assert (cache.length, cache.heads) == (prefix + tail, GROUPS)
    assert cache.key_bytes == GROUPS * WIDTH * dtype.itemsize


def drawn(rows: int, lists: int, k: int, length: int) -> Tensor:
    order = torch.rand(rows, lists, COUNT, length).argsort(-1)[..., :k]
    return order.masked_fill(torch.arange(k) >= k - 1, -1)


@pytest.mark.parametrize(("prefix", "tail"), [(200, 6), (20, 6)])
def test_stacked_lists_attend_as_each_alone(prefix: int, tail: int) -> None:
    """Lists of heads, groups and the layer, weighted ones, short and long ones, and one with a rest."""
    cache = shared(prefix, tail)
    length, queries = prefix + tail, normal(ROWS, HEADS, COUNT, WIDTH)
    scores = cache.scores(queries)
    kinds = [(HEADS, 4, False, None), (GROUPS, 4, True, None), (1, 7, False, None)]
    kinds += [(HEADS, 20, False, None), (HEADS, 4, False, "share")]
    chosen, recipe = list[Chosen](), parse("random()")
    for row, (lists, k, weighted, rest) in enumerate(kinds):
        slots = drawn(1, lists, k, length)
        logs = normal(*slots.shape).masked_fill(slots < 0, 0.0) if weighted else None
        left = (
            Rest(normal(1, HEADS, COUNT, 2, WIDTH), share=torch.rand(1, HEADS, COUNT, 2) / 4)
            if rest
            else None
        )
        selection = Selection(slots, logs, left, k, torch.full((1, COUNT), 2.0 * k))
        one = slice(row, row + 1)
        chosen.append(Chosen(recipe, one, slice(0, 1), slice(0, COUNT), k, selection))
    output = torch.full((ROWS, HEADS, COUNT, WIDTH), torch.nan)
    stacks = stacked(chosen, HEADS, length)
    for lists in stacks:
        some = scores[lists.rows][:, :, lists.place]
        output[lists.rows, :, lists.place] = lists.attend(some, cache.of(lists.rows), SCALING)
        assert lists.selection.keys_scored.tolist() == [[k] * COUNT for k in lists.budgets]  # type: ignore[union-attr]
    for one in chosen:
        s, rows = one.selection, one.rows
        alone = gather_attention(
            queries[rows],
            cache.keys[rows],
            cache.values[rows],
            s.indices,
            scaling=SCALING,
            log_weights=s.log_weights,
            rest_values=None if s.rest is None else s.rest.values,
            rest_share=None if s.rest is None else s.rest.share,
        )
        torch.testing.assert_close(output[rows], alone)
    require_choices(chosen, stacks, torch.full((COUNT,), length))
    with pytest.raises(InputError, match=r"random\(\) chose slot"):
        require_choices(chosen, stacks, torch.full((COUNT,), length // 8))
