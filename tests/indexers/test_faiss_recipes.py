"""What each FAISS recipe promises beside the laws: recall, ties, counts, sharing, threads and refusals."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from topkit.errors import InputError
from topkit.indexers import Step
from topkit.indexers.exact import exact
from topkit.indexers.faiss_gpu_lists import GpuLists
from topkit.indexers.spec import parse
from topkit.indexers.stated_cost import Shape

faiss = pytest.importorskip("faiss")
ALL = ("faiss_flat", "faiss_ivf", "faiss_pq", "faiss_ivfpq", "faiss_sq", "faiss_rabitq")


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def best_of(queries: torch.Tensor, keys: torch.Tensor, k: int) -> torch.Tensor:
    """The slots of the largest products, the lowest first of equal ones."""
    group = queries.shape[1] // keys.shape[1]
    scores = queries @ keys.repeat_interleave(group, 1).mT
    return torch.sort(scores, descending=True, stable=True).indices[..., :k]


def recall(spec: str, keys: torch.Tensor, queries: torch.Tensor, k: int) -> float:
    index = parse(spec).build(keys, Step(kv_heads=keys.shape[1]))
    got = index.select(queries, k, Step(kv_heads=keys.shape[1])).indices
    want = best_of(queries, keys, k)
    hits = (got[..., None] == want[..., None, :]).any(-1)
    return float(hits.float().mean())


def test_distances_find_keys_that_products_lose_behind_what_they_have_in_common():
    # Clusters about an offset, and queries near keys, as those of real models.
    centres = drawn(40, 32, seed=1) * 2
    keys = centres[torch.randint(40, (1500,), generator=torch.Generator().manual_seed(2))]
    keys = keys + drawn(1500, 32, seed=3) * 0.5
    far = drawn(32, seed=4) * 6
    queries = (keys[::100][:8] - keys.mean(0))[None, :, None]
    keys = (keys + far)[None, None]
    assert recall("faiss_hnsw", keys, queries, 20) > 0.95
    assert recall("faiss_hnsw:metric=ip", keys, queries, 20) < 0.7


@pytest.mark.parametrize("bits", range(1, 10))
def test_rabitq_states_the_bytes_of_faiss_s_codes(bits: int):
    """12 a key more where a dimension has several bits, whose first stand by themselves."""
    recipe = parse(f"faiss_rabitq:bits={bits}")
    for width in (24, 30, 64):
        keys = drawn(1, 2, 50, width)
        stated = recipe.costs(Shape(Hq=4, Hk=2, D=width, Dv=width, T=50, k=3, e=4))
        assert stated.index * 50 == pytest.approx(recipe.build(keys, Step()).nbytes)
        code = faiss.IndexRaBitQ(width, faiss.METRIC_INNER_PRODUCT, bits).code_size
        assert stated.read == 4 * 50 * code


def test_a_longer_key_that_comes_later_is_still_found():
    keys, one = drawn(1, 1, 400, 16), drawn(1, 1, 1, 16, seed=9)
    for times in (1.3, 3.0):
        index = parse("faiss_hnsw").build(keys, Step())
        longer = one / one.norm() * keys.norm(dim=-1).max() * times
        index.append(longer, Step())
        assert index.select(longer, 3, Step()).indices[0, 0, 0, 0] == 400


def test_flat_is_exact_to_the_tie():
    for seed in range(5):
        keys = torch.randint(-1, 2, (2, 2, 300, 4), generator=torch.Generator().manual_seed(seed))
        queries = torch.randint(-1, 2, (2, 4, 3, 4), generator=torch.Generator().manual_seed(seed))
        keys, queries = keys.float(), queries.float()
        index = parse("faiss_flat").build(keys, Step(kv_heads=2))
        for k in (1, 7, 100, 300):
            stop = torch.tensor([[40, 200, 300]])
            got = index.select(queries, k, Step(kv_heads=2, stop=stop)).indices
            for token, end in enumerate((40, 200, 300)):
                want = best_of(queries[:, :, token : token + 1], keys[:, :, :end], k)
                own = got[:, :, token : token + 1]
                assert torch.equal(own[..., : want.shape[-1]], want)
                assert (own[..., want.shape[-1] :] == -1).all()


@pytest.mark.parametrize(
    "name", ["faiss_sq:bits=4", "faiss_pq:dims=1", "faiss_ivf:nlist=1,nprobe=1"]
)
def test_equal_scores_go_to_the_lowest_slot(name):
    distinct = drawn(1, 1, 6, 8, seed=5)
    keys = distinct[:, :, torch.arange(120) % 6]  # each key twenty times
    index = parse(name).build(keys, Step())
    got = index.select(distinct[:, :, :1], 30, Step()).indices[0, 0, 0]
    first, second = got[0] % 6, got[20] % 6
    assert got.tolist() == [*range(int(first), 120, 6), *range(int(second), 60, 6)]


def test_lists_count_the_keys_that_they_compare():
    keys, queries = drawn(1, 1, 500, 8), drawn(1, 3, 1, 8, seed=1)
    index: Any = parse("faiss_ivf:nlist=16,nprobe=3").build(keys, Step())
    index.append(drawn(1, 1, 20, 8, seed=2), Step())
    lists = index.graphs[0][0].index
    every = torch.cat([keys, drawn(1, 1, 20, 8, seed=2)], 2)[0, 0].numpy()
    _, standing = lists.quantizer.search(every, 1)
    _, probed = lists.quantizer.search(queries[0, :, 0].numpy(), 3)
    counted = [np.isin(standing[:, 0], own).sum() for own in probed]
    chosen = index.select(queries, 600, Step())
    assert float(chosen.keys_scored) == pytest.approx(np.mean(counted))
    assert [(row >= 0).sum() for row in chosen.indices[0, :, 0]] == counted


@pytest.mark.parametrize("name", ["faiss_ivf:nlist=4,nprobe=2", "faiss_sq"])
def test_streams_behind_one_prefix_share_it(name):
    trunk: Any = parse(name).build(drawn(1, 2, 400, 16), Step(kv_heads=2))
    rows = trunk.fork()
    rows.reorder(torch.zeros(3, dtype=torch.long))
    rows.append(drawn(3, 2, 5, 16, seed=1), Step(kv_heads=2))
    assert all(row is trunk.graphs[0] for row in rows.graphs)
    assert trunk.graphs[0][0].ntotal == 400 and trunk.length == 400
    # Of each row the prefix, as it would hold it alone, and 5 keys behind it, with room, a head.
    behind = rows.nbytes - 3 * trunk.nbytes
    assert 0 < behind <= 3 * 2 * 64 * (4 * 16 + 8)


@pytest.mark.parametrize("name", [*ALL, "faiss_hnsw"])
def test_heads_in_threads_choose_as_one_after_another(name, monkeypatch):
    keys, queries = drawn(1, 4, 600, 16), drawn(1, 8, 1, 16, seed=1)
    answers = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            own = faiss.omp_get_max_threads()
            monkeypatch.setattr("topkit.indexers.faiss_threads.WORTH", 0)
            index = parse(name).build(keys, Step(kv_heads=4))
            index.append(keys[:, :, :7] + 1, Step(kv_heads=4))
            answers.append(index.select(queries, 20, Step(kv_heads=4)))
            assert faiss.omp_get_max_threads() == own
    finally:
        torch.set_num_threads(before)
    assert torch.equal(answers[0].indices, answers[1].indices)
    assert torch.equal(answers[0].keys_scored, answers[1].keys_scored)


def test_an_error_in_a_thread_is_the_callers(monkeypatch):
    monkeypatch.setattr("topkit.indexers.faiss_threads.WORTH", 0)
    index = parse("faiss_ivf:nlist=4,nprobe=2").build(drawn(1, 4, 60, 16), Step(kv_heads=4))
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with pytest.raises(AssertionError):  # FAISS's own, of other dimensions
            index.select(drawn(1, 4, 1, 12), 3, Step(kv_heads=4))
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("faiss_sq:bits=5", "faiss_sq: bits must be one of 4, 6, 8, 16; got 5"),
        ("faiss_ivfpq:bits=3", "faiss_ivfpq: bits must be one of 4, 5, 6, 7, 8; got 3"),
        ("faiss_ivfpq:bits=4,device=cuda", "faiss_ivfpq: bits must be one of 8; got 4"),
        ("faiss_ivfpq:nlist=4,nprobe=5", "faiss_ivfpq needs 1 <= nprobe <= nlist"),
        ("faiss_ivf:nlist=9999,nprobe=3000,device=cuda", "faiss-gpu probes at most 2,048 lists"),
        ("faiss_pq:dims=0", "faiss_pq: dims must be a whole number of at least 1; got 0"),
        ("faiss_rabitq:bits=0", "faiss_rabitq: bits must be a whole number of at least 1; got 0"),
        ("faiss_rabitq:query_bits=9", "query_bits must be a whole number of at most 8; got 9"),
        ("faiss_flat:device=tpu", "faiss_flat: device must be one of cpu, cuda; got 'tpu'"),
        ("faiss_hnsw:metric=cosine", "faiss_hnsw: metric must be one of l2, ip; got 'cosine'"),
    ],
)
def test_what_cannot_be_is_refused_when_it_is_made(spec, message):
    with pytest.raises(InputError, match=message):
        parse(spec)


@pytest.mark.skipif(hasattr(faiss, "StandardGpuResources"), reason="faiss-gpu is installed")
@pytest.mark.parametrize("name", ["faiss_flat", "faiss_ivf", "faiss_ivfpq", "faiss_sq"])
def test_faiss_of_a_cpu_is_refused_where_a_gpu_is_asked_for(name):
    recipe = parse(f"{name}:device=cuda")
    assert not recipe.traits().host
    with pytest.raises(InputError, match=r"needs faiss-gpu, and faiss-cpu .*topkit\[faiss-gpu\]"):
        recipe.build(drawn(1, 1, 9, 8), Step())


def test_flat_chooses_as_exact_among_the_visible():
    keys, queries = drawn(2, 2, 90, 16), drawn(2, 4, 1, 16, seed=1)
    step = Step(kv_heads=2, start=torch.tensor([0, 60]))
    got = parse("faiss_flat").build(keys, step).select(queries, 40, step)
    want = best_of(queries[1:], keys[1:, :, 60:], 30) + 60
    assert torch.equal(got.indices[1:, ..., :30], want)
    assert torch.as_tensor(got.keys_scored).tolist() == [[90], [30]]
    assert exact().family == parse("faiss_flat").family


@pytest.mark.parametrize("dims", [1, 4])
def test_pieces_are_rounded_on_a_gpu_as_faiss_rounds_them(dims):
    recipe: Any = parse(f"faiss_ivfpq:nlist=5,nprobe=2,dims={dims}")
    keys, more = drawn(700, 16), drawn(40, 16, seed=1)
    index = recipe.trained(faiss, keys)
    centroids = torch.from_numpy(index.quantizer.reconstruct_n(0, 5))
    book = recipe.codebook(faiss, index)
    lists = GpuLists(recipe, None, index.code_size, centroids, torch.zeros(5), book)
    got, standing = recipe.rounded_on_gpu(lists, more)
    want = torch.from_numpy(index.sa_decode(index.sa_encode(more.numpy())))
    assert torch.allclose(got, want, atol=1e-5)
    assert standing.tolist() == index.quantizer.search(more.numpy(), 1)[1][:, 0].tolist()


@pytest.mark.parametrize("bits", [4, 6, 8, 16])
def test_steps_are_rounded_on_a_gpu_as_faiss_rounds_them(bits, monkeypatch):
    """And stand in lists, all of which are searched, as they would in none."""
    recipe: Any = parse(f"faiss_sq:bits={bits},device=cuda")
    keys, more = drawn(700, 16), drawn(40, 16, seed=1) * 2
    keys[:, 3] = 2.5  # a dimension without a range
    made = []
    monkeypatch.setattr(
        "topkit.indexers.faiss_gpu_lists._on_gpu", lambda _, index, __: made.append(index) or index
    )
    monkeypatch.setattr(GpuLists, "add", lambda self, keys: self.index.add(keys.numpy()))
    lists = recipe.make(faiss, keys)
    plain: Any = parse(f"faiss_sq:bits={bits}")
    flat = plain.make(faiss, keys)
    rounded, _ = recipe.rounded(faiss, lists, more)
    want = torch.from_numpy(flat.sa_decode(flat.sa_encode(more.numpy())))
    assert torch.allclose(rounded, want, atol=1e-6)
    queries = drawn(3, 16, seed=2).numpy()
    for a, b in zip(made[0].search(queries, 50), flat.search(queries, 50), strict=True):
        assert np.allclose(a, b, atol=1e-4)
