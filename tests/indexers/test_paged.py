"""Pages of keys: any history gives what a slow rendering of the keys that are left gives."""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from plainly import best
from topkit.errors import InputError
from topkit.indexers import Cache, Paged, Step, moba, quest, shared, top_p
from topkit.indexers.paged_index import PagedIndex

HEADS, GROUPS, WIDTH = 4, 2, 3


def quest_bound(query, keys):
    return sum(max(q * min(x), q * max(x)) for q, x in zip(query, zip(*keys)))  # noqa: B905


def moba_mean(query, keys):
    return sum(q * Fraction(sum(x), len(x)) for q, x in zip(query, zip(*keys)))  # noqa: B905


SLOW = {quest: quest_bound, moba: moba_mean}


def slow(recipe, query, keys, k):
    """Places among a row's real keys, best first: whole pages, the last cut to its newest keys."""
    size = recipe.page_size
    pages = [range(a, min(a + size, len(keys))) for a in range(0, len(keys), size)]
    scores: list[float] = [SLOW[type(recipe)](query, [keys[i] for i in page]) for page in pages]
    if type(recipe) is moba and scores:
        scores[-1] = float("inf")
    return [i for p in best(scores) for i in reversed(pages[p])][:k]


class History:
    """An index and, beside it, the keys that it has seen: whole numbers, so that sums are exact."""

    def __init__(self, recipe, start, length, seed):
        self.recipe, self.start = recipe, torch.tensor(start)
        self.random = torch.Generator().manual_seed(seed)
        self.keys = self.draw(len(start), GROUPS, length, WIDTH)
        self.index = recipe.build(self.keys, self.step())

    def draw(self, *shape):
        return torch.randint(-3, 4, shape, generator=self.random).float()

    def step(self):
        start = self.start if bool(self.start.any()) else None
        inputs = {"cache": Cache(self.keys)}
        return Step(start=start, kv_heads=GROUPS, inputs=inputs).given_to(self.recipe)

    def append(self, count):
        new = self.draw(len(self.start), GROUPS, count, WIDTH)
        self.keys = torch.cat([self.keys, new], 2)
        self.index.append(new, self.step())

    def truncate(self, count):
        length = max(self.keys.shape[2] - count, 1)
        self.keys = self.keys[:, :, :length]
        self.index.truncate(length, self.step())

    def reorder(self, seed):
        rows = torch.randint(0, len(self.start), (1 + seed % 3,), generator=self.random)
        self.keys, self.start = self.keys[rows], self.start[rows]
        self.index.reorder(rows)

    def fork(self, count):
        """Let an origin and its fork go on apart, and stay with either."""
        origin, keys = self.index, self.keys
        self.index = origin.fork()
        if count % 2:
            self.append(count)
            self.index, self.keys = origin, keys
        else:
            origin.append(self.draw(len(self.start), GROUPS, count + 1, WIDTH), self.step())

    def check(self, k):
        queries = self.draw(len(self.start), HEADS, 1, WIDTH)
        chosen = self.index.select(queries, k, self.step())
        length = self.keys.shape[2]
        assert self.index.length == length and chosen.indices.shape[-1] == min(k, length)
        for row, first in enumerate(self.start.tolist()):
            for head in range(HEADS):
                keys = self.keys[row, head * GROUPS // HEADS, first:].int().tolist()
                want = slow(self.recipe, queries[row, head, 0].int().tolist(), keys, k)
                got = [s - first for s in chosen.indices[row, head, 0].tolist() if s >= 0]
                assert got == want, f"row {row}, head {head}, padding {first}"


moves = st.tuples(
    st.sampled_from(["append", "append", "truncate", "reorder", "fork"]), st.integers(0, 12)
)


@pytest.mark.parametrize("recipe", SLOW)
@settings(deadline=None, max_examples=150)
@given(
    st.integers(1, 9),
    st.lists(st.integers(0, 14), min_size=1, max_size=3),
    st.integers(1, 30),
    st.lists(moves, max_size=7),
    st.integers(1, 40),
    st.integers(0, 10**6),
)
def test_any_history_selects_as_the_keys_that_are_left(recipe, size, start, length, steps, k, seed):
    history = History(recipe(page_size=size), start, length, seed)
    history.check(k)
    for name, number in steps:
        getattr(history, name)(number)
        history.check(k)


def test_moba_attends_its_own_page_first_and_below_it_the_best_mean():
    keys = torch.tensor([[1.0], [1.0], [9.0], [-9.0], [3.0], [3.0], [-5.0]])[None, None]
    step = Step(inputs={"cache": Cache(keys)})
    index = moba(page_size=2).build(keys, step)
    query = torch.ones(1, 1, 1, 1)
    assert index.select(query, 4, step).indices.tolist() == [[[[6, 5, 4, 1]]]]
    scores = index.score(query, step)[0, 0, 0]
    assert scores[:6].tolist() == [1, 1, 0, 0, 3, 3]
    assert 3 < float(scores[6]) < 3.0001


@pytest.mark.parametrize("how", ["mean", "sum", "max"])
def test_the_querys_own_page_stays_first_around_a_paged_recipe(how):
    """Also where every head likes the same other page best, and pooled scores round to its own."""
    for seed in range(100):
        draw = torch.Generator().manual_seed(seed)
        keys = torch.randn(1, GROUPS, 40, WIDTH, generator=draw)
        queries = torch.randn(1, HEADS, 1, WIDTH, generator=draw).abs()
        keys[:, :, 24:28] = keys[:, :, 24:28].abs() + 1
        step = Step(kv_heads=GROUPS, inputs={"cache": Cache(keys)})
        base = moba(page_size=4)
        for recipe in (
            shared(base, how=how),
            shared(base, per="layer", how=how),
            top_p(base, mass=0.3),
        ):
            chosen = recipe.build(keys, step).select(queries, 9, step).indices
            # It holds the slots from 36 to 39.
            assert set(chosen[..., :1].flatten().tolist()) == {36}


@dataclass(frozen=True)
class counts_keys(moba):
    """Notes how many keys each summary is made of."""

    seen = []

    def summarise(self, keys, real):
        self.seen.append(int(real.sum()))
        return super().summarise(keys, real)


def test_an_append_reads_the_new_keys_alone_and_writes_their_pages_alone():
    keys = torch.randn(2, GROUPS, 64, WIDTH)
    step = Step(start=torch.tensor([0, 5]), inputs={"cache": Cache(keys)})
    counts_keys.seen.clear()
    index = counts_keys(page_size=4).build(keys[:, :, :40], step)
    assert isinstance(index, PagedIndex)
    index.append(keys[:, :, 40:41], step)
    before = {name: pages[:, :, :8].clone() for name, pages in index.pages.items()}
    at = index.pages["total"].data_ptr()
    for slot in range(41, 44):
        index.append(keys[:, :, slot : slot + 1], step)
    assert counts_keys.seen == [40 + 35, 2, 2, 2, 2]
    assert index.pages["total"].data_ptr() == at, "an append to a page moved what is there"
    for name, pages in before.items():
        assert torch.equal(index.pages[name][:, :, :8], pages)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bytes_are_those_of_the_summaries(dtype):
    keys = torch.randn(1, GROUPS, 64, WIDTH).to(dtype)
    step = Step(inputs={"cache": Cache(keys)})
    bounds, means = (r(page_size=16).build(keys, step) for r in (quest, moba))
    assert bounds.nbytes == 4 * 2 * GROUPS * WIDTH * keys.element_size()
    # A sum in float32 for each KV head, and the number of its keys once.
    assert means.nbytes == 4 * (GROUPS * WIDTH + 1) * 4
    for index in (bounds, means):
        assert isinstance(index, PagedIndex)
        read = index.select(torch.randn(1, HEADS, 1, WIDTH), 5, step).bytes_read
        assert float(read) == index.nbytes
        each = index.nbytes // 4
        for count, pages in ((1, 6), (15, 6), (1, 8), (20, 8)):
            index.append(keys[:, :, :count], step)
            assert index.nbytes == pages * each  # with the room behind them


@dataclass(frozen=True)
class forgets_pages(moba):
    def summarise(self, keys, real):
        return {name: pages[:, :, :3] for name, pages in super().summarise(keys, real).items()}


def test_summaries_that_are_not_one_a_page_are_refused():
    keys = torch.randn(2, GROUPS, 20, WIDTH)
    with pytest.raises(
        InputError, match=r"forgets_pages: summarise gave 'total' \[2, 2, 3, 3\] for 5"
    ):
        forgets_pages(page_size=4).build(keys, Step())


def test_scores_that_are_not_one_a_page_are_refused():
    @dataclass(frozen=True)
    class newest_alone(moba):
        def score(self, queries, pages, step):
            return super().score(queries, pages, step)[..., -1:]

    index = newest_alone(page_size=4).build(torch.randn(1, 2, 9, 4), Step(kv_heads=2))
    said = (
        r"newest_alone: score gave \[1, 4, 1, 1\] for 1 queries and 3 pages in 1 rows; expected one"
    )
    with pytest.raises(InputError, match=said):
        index.select(torch.randn(1, 4, 1, 4), 5, Step(kv_heads=2))


def test_a_recipe_that_lacks_a_part_is_named():
    keys = torch.randn(1, 1, 4, WIDTH)
    with pytest.raises(NotImplementedError, match=r"Paged\.summarise"):
        Paged().build(keys, Step())


@pytest.mark.parametrize("recipe", [quest(page_size=4), moba(page_size=4)])
def test_a_step_that_was_not_revealed_leaves_no_trace(recipe):
    keys, queries = torch.randn(2, GROUPS, 30, WIDTH), torch.randn(2, HEADS, 1, WIDTH)
    start = torch.tensor([0, 3])

    def step(length):
        return Step(start=start, inputs={"cache": Cache(keys[:, :, :length])})

    def grown():
        index = recipe.build(keys[:, :, :18], step(18))
        index.append(keys[:, :, 18:19], step(19))
        return index

    index, want = grown(), grown()
    fixed = replace(step(30), at=torch.tensor([19]), stop=torch.tensor([[20]]), room=30)
    for _ in range(2):
        index.append(keys[:, :, 19:20] + 5, fixed)
    for length in (20, 21):
        for one in (index, want):
            one.append(keys[:, :, length - 1 : length], step(length))
        assert torch.equal(index.score(queries, step(length)), want.score(queries, step(length)))
