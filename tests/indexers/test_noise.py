"""Counter noise: the same number for the same place, and otherwise like chance."""

from __future__ import annotations

import itertools

import pytest
import torch

from topkit.indexers import Step
from topkit.indexers.noise import noise as noise_for
from topkit.kernels import blocks


def noise(step, length, count, heads, device=None, **options):
    return noise_for(step, length, torch.empty(1, heads, count, 0, device=device), **options)


def test_padding_batch_order_and_the_number_of_queries_change_nothing():
    alone = noise(Step(seed=3, layer=2), 20, 4, 3)
    start = torch.tensor([0, 7, 3])
    padded = noise(Step(seed=3, layer=2, start=start), 27, 4, 3)
    assert torch.equal(padded[1, :, :, 7:], alone[0])
    assert torch.equal(
        noise(Step(seed=3, layer=2, start=start[[2, 1, 1]]), 27, 4, 3), padded[[2, 1, 1]]
    )
    one = noise(Step(seed=3, layer=2), 20, 1, 3)
    assert torch.equal(one[:, :, 0], alone[:, :, -1])
    earlier = noise(Step(seed=3, layer=2, stop=torch.tensor([[20]])), 25, 1, 3)
    assert torch.equal(earlier[..., :20], one)


@pytest.mark.parametrize(
    "other", [Step(seed=4), Step(layer=1), Step(stop=torch.tensor([[499]]))], ids=str
)
def test_seed_layer_and_query_each_change_it(other):
    a, b = noise(Step(), 500, 1, 2), noise(other, 500, 1, 2)
    assert (a == b).float().mean() < 0.01
    assert (noise(Step(), 500, 1, 2, salt=1) == a).float().mean() < 0.01
    assert (a[0, 0] == a[0, 1]).float().mean() < 0.01


def test_it_can_be_shared_over_queries_heads_and_slots():
    same = noise(Step(), 50, 5, 2, per_query=False)
    assert torch.equal(same[:, :, 0], same[:, :, 4])
    heads = noise(Step(), 50, 5, 6, heads_together=3)
    assert torch.equal(heads[:, 0], heads[:, 2]) and not torch.equal(heads[:, 2], heads[:, 3])
    pages = noise(Step(start=torch.tensor([3])), 50, 1, 1, slots_together=16)[0, 0, 0]
    assert [len(set(pages[a:b].tolist())) for a, b in ((3, 19), (19, 35), (18, 20))] == [1, 1, 2]


def test_some_slots_get_the_numbers_that_all_slots_would():
    slots = torch.tensor([4, 0, 17])
    every = noise(Step(), 20, 2, 3)
    some = noise(Step(), 20, 2, 3, slots=slots.expand(1, 3, 2, 3))
    assert torch.equal(some, every[..., slots])


@pytest.mark.parametrize("most", [1, 96, 1 << 19])
def test_it_does_not_depend_on_where_blocks_end(most, monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK", most)
    start, queries = torch.tensor([0, 5]), torch.empty(2, 4, 3, 0)
    step = Step(layer=70, seed=12345678901, start=start)
    for length in (1, 33):
        every = noise_for(step, length, queries, salt=3)
        found = (every * (1 << 24)).long().tolist()
        for b, h, t, key in itertools.product(range(2), range(4), range(3), range(length)):
            query = length - 3 + t + 1 - 5 * b
            assert found[b][h][t][key] == slow(12345678901, 70, query, h, key - 5 * b, 3)
        slots = torch.arange(length).expand(1, 4, 3, length)
        assert torch.equal(noise_for(step, length, queries, slots=slots, salt=3), every)
        assert torch.equal(noise_for(step, length, queries, slots=slots.clone(), salt=3), every)


def test_it_is_uniform_and_without_visible_correlation():
    draws = noise(Step(), 4000, 25, 4).double()
    assert draws.min() >= 0 and draws.max() < 1
    counts = torch.histc(draws.float(), bins=100, min=0, max=1)
    expected = draws.numel() / 100
    # Chi-square with 99 degrees of freedom: mean 99, deviation 14.
    assert ((counts - expected) ** 2 / expected).sum() < 99 + 5 * 14.1
    centred = draws - 0.5
    for shifted in (centred.roll(1, -1), centred.roll(1, -2), centred.roll(1, -3)):
        assert (centred * shifted).mean().abs() * 12 < 5 / draws.numel() ** 0.5


def test_a_known_value_guards_against_silent_change():
    found = (noise(Step(seed=1, layer=2), 3, 1, 1)[0, 0, 0] * (1 << 24)).long().tolist()
    assert found == [slow(1, 2, 3, 0, key) for key in range(3)]


def slow(seed: int, layer: int, query: int, head: int, key: int, salt: int = 0) -> int:
    """The hash in Python integers of unbounded size."""
    tag = (layer * 0x27D4EB2F + seed * 0x165667B1 + salt * 0x9E3779B9) % 2**32
    place = mix(query * 0x85EBCA77 + head * 0xC2B2AE3D + tag)
    return mix(key * 0x9E3779B1 + place) >> 8


def mix(x: int) -> int:
    x %= 2**32
    x = (x ^ (x >> 16)) * 0x85EBCA6B % 2**32
    x = (x ^ (x >> 13)) * 0xC2B2AE35 % 2**32
    return x ^ (x >> 16)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_gpu_draws_the_same():
    here = noise(Step(seed=9), 1000, 3, 4)
    assert torch.equal(noise(Step(seed=9), 1000, 3, 4, torch.device("cuda")).cpu(), here)


def test_each_text_has_a_seed_of_its_own_and_always_the_same():
    from topkit.indexers.noise import seed_of

    assert seed_of(0, "niah-single", 512, 3) == seed_of(0, "niah-single", 512, 3)
    places = [
        (seed, length, sample) for seed in (0, 1) for length in (512, 1024) for sample in range(9)
    ]
    assert len({seed_of(*place) for place in places}) == len(places)
