"""What keeps the keys that queries voted for: what stays, what never comes back, what is refused."""

from __future__ import annotations

import pytest
import torch

from topkit.contract import check_indexer, parametrize_with_checks
from topkit.contract.draw import RANDOM
from topkit.errors import InputError
from topkit.indexers import h2o, retrieval_attention, shared, snapkv
from topkit.indexers.spec import parse

STEPS = 20


def stream(recipe, seed=0):
    return RANDOM(recipe, length=60, heads=(4, 2), seed=seed)


def decoded(recipe, k, one, index=None):
    """What each of the last tokens selects, as they are appended one by one."""
    index = index or one.build(recipe, [one.length - STEPS])
    chosen = []
    for length in range(index.length + 1, one.length + 1):
        one.append(recipe, index, length)
        chosen.append(one.ask(recipe, index, k).indices[:, :, 0])
    return chosen


@pytest.mark.parametrize("spec", ["h2o()", "h2o(recent=0.2)", "snapkv(window=4, kernel=3)"])
def test_what_was_evicted_never_comes_back(spec):
    recipe, seen = parse(spec), 0
    one = stream(recipe)
    for before, now in zip(*(decoded(recipe, 8, one)[i:] for i in (0, 1)), strict=False):
        new = one.length - STEPS + 1 + seen
        come = (now[..., None] != before[..., None, :]).all(-1) & (now >= 0)
        assert bool((now[come] == new).all())
        seen += 1
    assert seen == STEPS - 1


def test_h2o_keeps_half_of_k_for_the_newest_and_all_where_k_holds_all():
    recipe = h2o()
    one = stream(recipe)
    for length, chosen in enumerate(decoded(recipe, 8, one), one.length - STEPS + 1):
        assert chosen[..., :4].unique(dim=-1).flatten(0, 1).unique(dim=0).tolist() == [
            list(range(length - 4, length))
        ]
    everything = decoded(recipe, 60, one)[-1].sort(-1).values
    assert bool((everything == torch.arange(60)).all())


def test_each_budget_of_h2o_is_a_cache_of_its_own():
    recipe = h2o()
    one = stream(recipe)
    apart = {k: decoded(recipe, k, one) for k in (4, 9)}
    index = one.build(recipe, [one.length - STEPS])
    for number in range(STEPS):
        length = one.length - STEPS + number + 1
        one.append(recipe, index, length)
        last = slice(length - 1, length)
        together = index.select_many(
            one.queries[:, :, last], [4, 9], one.step(recipe, last, length)
        )
        for k, chosen in together.items():
            assert torch.equal(chosen.indices[:, :, 0], apart[k][number])


def test_a_budget_of_h2o_that_grows_goes_on_from_what_was_kept():
    recipe = h2o()
    one = stream(recipe)
    index = one.build(recipe, [40])
    before = one.ask(recipe, index, 6).indices[:, :, 0]
    one.append(recipe, index, 41)
    now = one.ask(recipe, index, 7).indices[:, :, 0]
    assert torch.equal(
        now.sort(-1).values, torch.nn.functional.pad(before, (0, 1), value=40).sort(-1).values
    )


def test_snapkv_has_a_list_a_query_head_or_one_a_group():
    for recipe, lists in ((snapkv(window=4), 4), (shared(snapkv(window=4)), 2)):
        one = stream(recipe)
        chosen = one.ask(recipe, one.build(recipe), 9).indices
        assert chosen.shape[1] == lists
        # The window, newest first, and then the votes.
        assert chosen[..., :4].unique().tolist() == [56, 57, 58, 59]
        assert chosen[0, 0, 0, :4].tolist() == [59, 58, 57, 56]


def test_votes_are_alike_however_many_queries_go_at_once(monkeypatch):
    from topkit.indexers import votes

    one = stream(h2o())
    step = one.step(h2o(), slice(0, 60), 60, call="build")
    whole = votes.prompt_votes(one.queries, one.keys, step)
    monkeypatch.setattr(votes, "PIECE", 7 * one.queries.shape[0] * 4 * 60)
    torch.testing.assert_close(votes.prompt_votes(one.queries, one.keys, step), whole)
    assert torch.allclose(whole.sum(-1), torch.tensor(60.0).double())  # a weight of 1 a query


NARROW = ["retrieval_attention(degree=4, nearest=3, ef=2)", "retrieval_attention(degree=6, ef=8)"]


# One graph serves a group's heads, whose copies would each have a graph of their own.
@pytest.mark.slow
@parametrize_with_checks(
    NARROW, expected_failed_checks={"repeated_kv_heads": "a graph of each copy"}
)
def test_walks_keep_the_laws(indexer, check):
    check(indexer)


def test_a_wider_beam_finds_more_and_one_that_holds_all_finds_all():
    recipes = [retrieval_attention(degree=6, nearest=5, ef=ef) for ef in (2, 12, 60)]
    one = RANDOM(recipes[0], length=60, heads=(4, 2), rows=4)
    best = parse("exact")
    want = one.ask(best, one.build(best), 5).indices
    found = []
    for recipe in recipes:
        chosen = one.ask(recipe, one.build(recipe), 5)
        found.append(
            float((chosen.indices[..., None] == want[..., None, :]).any(-1).float().mean())
        )
    assert found[0] < found[1] <= found[2] == 1.0


def test_a_walk_reads_less_than_a_scan():
    recipe = retrieval_attention(degree=4, nearest=4, ef=4)
    one = RANDOM(recipe, length=900, heads=(2, 1), rows=1)
    chosen = one.ask(recipe, one.build(recipe), 4)
    assert 0 < float(chosen.keys_scored) < 300
    assert float(chosen.bytes_read) < 2 * 300 * (one.keys.shape[3] * 4 + 16)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("snapkv(window=0)", "window must be a whole number of at least 1; got 0"),
        ("snapkv(kernel=4)", "kernel must be odd, to have a middle; got 4"),
        ("snapkv(pool=mean)", "pool must be one of avg, max; got 'mean'"),
        ("h2o(recent=1.5)", "recent must be a number from 0 to 1; got 1.5"),
        ("retrieval_attention(degree=2)", "degree must be a whole number of at least 3; got 2"),
        ("retrieval_attention(ef=0)", "ef must be a whole number of at least 1; got 0"),
        ("top_p(h2o())", "has none; wrap it the other way round"),
    ],
)
def test_what_is_no_parameter_is_refused(text, said):
    with pytest.raises(InputError, match=said):
        parse(text)


def test_a_prompt_shorter_than_the_window_is_all_window():
    check_indexer("snapkv(window=100, kernel=7)")
