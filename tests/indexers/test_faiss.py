"""FAISS's threads, which are the process's, are given back."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from topkit.indexers import Step, faiss_hnsw, faiss_ivf

faiss = pytest.importorskip("faiss")


@pytest.fixture(params=[1, 3, 8])
def threads(request):
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(request.param)
    yield request.param
    faiss.omp_set_num_threads(before)


@pytest.mark.parametrize("recipe", [faiss_ivf(nlist=4, nprobe=2), faiss_hnsw(M=4)])
def test_threads_are_as_before_after_each_use(recipe, threads):
    keys, queries = torch.randn(1, 2, 40, 8), torch.randn(1, 4, 1, 8)
    index = recipe.build(keys, Step())
    assert faiss.omp_get_max_threads() == threads
    for use in (
        lambda: index.fork().append(keys, Step()),
        lambda: index.select(queries, 5, Step()),
        lambda: index.truncate(30, Step()),
        lambda: index.append(keys[:, :, :1], Step()),
    ):
        use()
        assert faiss.omp_get_max_threads() == threads


@pytest.mark.parametrize("recipe", [faiss_ivf(nlist=4, nprobe=2), faiss_hnsw(M=4)])
def test_threads_are_as_before_after_an_error(recipe, threads):
    index = recipe.build(torch.randn(1, 2, 40, 8), Step())
    with pytest.raises(AssertionError):  # FAISS's own, of other dimensions
        index.select(torch.randn(1, 4, 1, 6), 5, Step())
    assert faiss.omp_get_max_threads() == threads
    with pytest.raises(AssertionError):
        index.append(torch.randn(1, 2, 1, 6), Step())
    assert faiss.omp_get_max_threads() == threads


def test_one_thread_is_what_a_search_uses(threads, monkeypatch):
    index: Any = faiss_ivf(nlist=4, nprobe=2).build(torch.randn(1, 2, 40, 8), Step())
    seen = []
    graph = index.graphs[0][0].index
    real = type(graph).search_preassigned_c
    monkeypatch.setattr(
        type(graph),
        "search_preassigned_c",
        lambda self, *args, **kwargs: (
            seen.append(faiss.omp_get_max_threads()),
            real(self, *args, **kwargs),
        )[1],
    )
    index.select(torch.randn(1, 4, 1, 8), 5, Step())
    assert seen == [1, 1]


def test_all_budgets_are_one_walk():
    """And every budget is the beginning of what the largest found."""
    keys, queries = torch.randn(2, 2, 300, 8), torch.randn(2, 4, 1, 8)
    index = faiss_hnsw(M=4, ef_search=16).build(keys, Step(kv_heads=2))
    before = faiss.cvar.hnsw_stats.n1
    many = index.select_many(queries, [4, 16, 50], Step(kv_heads=2))
    assert faiss.cvar.hnsw_stats.n1 - before == 8
    for k, chosen in many.items():
        alone = index.select(queries, k, Step(kv_heads=2))
        assert torch.equal(chosen.indices, alone.indices)
        assert torch.equal(torch.as_tensor(chosen.keys_scored), torch.as_tensor(alone.keys_scored))


def test_what_is_not_counted_chooses_the_same():
    keys, queries = torch.randn(3, 2, 300, 8), torch.randn(3, 4, 1, 8)
    for recipe in (faiss_hnsw(M=4), faiss_ivf(nlist=4, nprobe=2)):
        index = recipe.build(keys, Step(kv_heads=2))
        counted, plain = (
            index.select(queries, 9, Step(kv_heads=2, counted=counted)) for counted in (True, False)
        )
        assert torch.equal(counted.indices, plain.indices)
        assert torch.as_tensor(counted.bytes_read).min() > 0
        assert plain.bytes_read == plain.keys_scored == 0


def test_one_head_may_have_ties_that_another_has_not():
    """Ties are looked for in each head's own list, as far as they go."""
    keys = torch.randn(1, 2, 400, 8)
    keys[:, 1, 20:] = keys[:, 1, 20:21]
    queries = torch.randn(1, 4, 1, 8)
    for recipe in (faiss_ivf(nlist=1, nprobe=1), faiss_hnsw(M=4)):
        chosen = recipe.build(keys, Step(kv_heads=2)).select(queries, 40, Step(kv_heads=2))
        assert chosen.indices.shape == (1, 4, 1, 40)
        if isinstance(recipe, faiss_ivf):
            products = queries @ keys.repeat_interleave(2, 1).mT
            best = torch.sort(products, descending=True, stable=True).indices[..., :40]
            assert torch.equal(chosen.indices[:, 2:], best[:, 2:])


def test_a_graph_is_the_same_whatever_the_number_of_threads():
    """Torch's, FAISS's, and those of callers: each graph is linked by one."""
    draw = torch.Generator().manual_seed(0)
    keys, more = (torch.randn(n, 2, t, 32, generator=draw) for n, t in ((1, 4096), (3, 4)))
    queries = torch.randn(3, 4, 1, 32, generator=draw)

    def life(_: int) -> list[torch.Tensor]:
        index: Any = (
            faiss_hnsw(M=8, ef_construction=16, center=True).build(keys, Step(kv_heads=2)).fork()
        )
        index.reorder(torch.zeros(3, dtype=torch.long))
        seen = []
        for token in range(4):
            index.append(more[:, :, token : token + 1], Step(kv_heads=2))
            seen.append(index.select_many(queries, [16, 64], Step(kv_heads=2))[64].indices)
        index.truncate(4098, Step(kv_heads=2))
        return [*seen, index.select(queries, 64, Step(kv_heads=2)).indices]

    before, own = torch.get_num_threads(), faiss.omp_get_max_threads()
    try:
        torch.set_num_threads(1)
        alone = life(0)
        torch.set_num_threads(4)
        faiss.omp_set_num_threads(4)
        with ThreadPoolExecutor(2) as pool:
            for other in pool.map(life, range(2)):
                assert all(torch.equal(a, b) for a, b in zip(alone, other, strict=True))
    finally:
        torch.set_num_threads(before)
        faiss.omp_set_num_threads(own)
