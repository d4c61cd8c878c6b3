"""faiss-gpu: keys stay on the GPU, and what is chosen there is what the host chooses."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from topkit.contract.check import LAWS
from topkit.contract.draw import RANDOM
from topkit.errors import InputError
from topkit.indexers import Step
from topkit.indexers.faiss_gpu import WORKING, resources
from topkit.indexers.spec import parse

faiss = pytest.importorskip("faiss")
GPU = hasattr(faiss, "StandardGpuResources") and faiss.get_num_gpus() > 0
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not GPU, reason="FAISS has no GPU")]

# Of few lists: equal scores, of which there are many where lists hold one key each, are any key's.
SPECS = (
    "faiss_flat",
    "faiss_ivf:nlist=4,nprobe=3",
    "faiss_ivfpq:nlist=4,nprobe=3",
    "faiss_ivfpq:nlist=4,nprobe=4,dims=2,center=true,hadamard=true",
    "faiss_sq",
    "faiss_sq:bits=4",
    "faiss_sq:bits=16,hadamard=true",
)
# Lists that FAISS trains on every key of the test: of more it draws a sample of its own on the host.
MANY = tuple(
    spec.replace("faiss_ivf:nlist=4,nprobe=3", "faiss_ivf:nlist=12,nprobe=9") for spec in SPECS
)
# Laws whose streams have no ties of codes: faiss-gpu keeps any of equal scores.
UNTIED = sorted(
    set(LAWS) - {"budgets_together", "queries_together", "cuda_agrees", "row_alone", "stated_costs"}
)


def on(spec: str, device: str) -> Any:
    return parse(f"{spec}{',' if ':' in spec else ':'}device={device}")


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).cuda()


def alike(a: torch.Tensor, b: torch.Tensor) -> float:
    """The share of slots that two selections have in common."""
    return float((a[..., None] == b[..., None, :]).any(-1).float().mean())


@pytest.mark.parametrize("law", UNTIED)
@pytest.mark.parametrize("spec", SPECS)
def test_laws(spec, law):
    LAWS[law](on(spec, "cuda"), RANDOM)


@pytest.mark.parametrize("spec", MANY)
def test_a_gpu_chooses_as_the_host(spec):
    keys, more = drawn(2, 2, 3000, 64), drawn(2, 2, 40, 64, seed=1)
    queries = drawn(2, 8, 1, 64, seed=2)
    answers = []
    for device in ("cpu", "cuda"):
        step = Step(kv_heads=2, start=torch.tensor([0, 700], device="cuda"))
        index = on(spec, device).build(keys, step)
        chosen = [index.select(queries, 50, step)]
        index.append(more[:, :, :25], step)
        index.append(more[:, :, 25:], step)
        chosen.append(index.select(queries, 50, step))
        twin = index.fork()
        twin.reorder(torch.tensor([1, 0, 1]))
        index.truncate(3010, step)
        chosen.append(index.select(queries, 50, step))
        index.truncate(2000, step)
        chosen.append(index.select(queries, 50, step))
        swapped = Step(kv_heads=2, start=torch.tensor([700, 0, 700], device="cuda"))
        chosen.append(twin.select(queries[[1, 0, 1]], 50, swapped))
        answers.append(chosen)
    for host, gpu in zip(*answers, strict=True):
        assert gpu.indices.is_cuda
        assert alike(gpu.indices, host.indices) > 0.99
        assert torch.allclose(gpu.keys_scored, host.keys_scored.cuda(), rtol=0.01)


@pytest.mark.parametrize("spec", SPECS)
def test_no_key_passes_through_the_host(spec, monkeypatch):
    """But for the sample that is trained on."""
    keys = drawn(1, 1, 40000, 32)
    moved: list[int] = []
    real = torch.Tensor.cpu

    def cpu(self, *args, **kwargs):
        moved.append(self.numel())
        return real(self, *args, **kwargs)

    monkeypatch.setattr(torch.Tensor, "cpu", cpu)
    index = on(spec, "cuda").build(keys, Step())
    index.append(keys[:, :, :3], Step())
    index.select(keys[:, :, :1], 100, Step())
    assert sum(moved) < 0.2 * keys.numel()


@pytest.mark.parametrize("spec", SPECS)
def test_more_keys_than_faiss_chooses_are_refused_by_name(spec):
    index = on(spec, "cuda").build(drawn(1, 1, 5000, 32), Step())
    assert index.select(drawn(1, 2, 1, 32), 2048, Step()).indices.shape[-1] == 2048
    with pytest.raises(InputError, match="faiss-gpu chooses at most 2,048 keys; got k=2049"):
        index.select(drawn(1, 2, 1, 32), 2049, Step())


def test_six_bits_are_refused_by_name_beyond_what_shared_memory_holds():
    index = on("faiss_sq:bits=6", "cuda").build(drawn(1, 1, 5000, 32), Step())
    host = on("faiss_sq:bits=6", "cpu").build(drawn(1, 1, 5000, 32).cpu(), Step())
    queries = drawn(1, 2, 1, 32)
    got, want = (
        x.select(queries.to(d), 512, Step()).indices.cpu()
        for x, d in ((index, "cuda"), (host, "cpu"))
    )
    assert alike(got, want) > 0.99
    with pytest.raises(InputError, match="faiss-gpu chooses at most 512 keys; got k=513"):
        index.select(queries, 513, Step())


def test_pieces_that_faiss_has_no_kernel_for_are_refused_by_name():
    with pytest.raises(InputError, match=r"faiss-gpu takes 1, 2, .* pieces of a key; got 5"):
        on("faiss_ivfpq:nlist=4,nprobe=3,dims=4", "cuda").build(drawn(1, 1, 500, 20), Step())


@pytest.mark.parametrize("spec", SPECS)
def test_a_search_is_of_torchs_stream(spec):
    """What is still being written when the search is launched is read when it is there."""
    keys, queries = drawn(1, 2, 20000, 64), drawn(1, 4, 1, 64, seed=1)
    index = on(spec, "cuda").build(keys, Step(kv_heads=2))
    want = index.select(queries, 64, Step(kv_heads=2)).indices
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        late = torch.zeros_like(queries)
        torch.cuda._sleep(50_000_000)
        late.copy_(queries)
        got = index.select(late, 64, Step(kv_heads=2)).indices
    torch.cuda.current_stream().wait_stream(stream)
    assert alike(got, want) == 1


@pytest.mark.parametrize("spec", SPECS)
def test_many_queries_each_see_what_is_before_them(spec):
    keys, queries = drawn(1, 2, 600, 32), drawn(1, 4, 5, 32, seed=1)
    index = on(spec, "cuda").build(keys[:, :, :590], Step(kv_heads=2))
    index.append(keys[:, :, 590:], Step(kv_heads=2))
    together = index.select(queries, 20, Step(kv_heads=2)).indices
    for n in range(5):
        alone = on(spec, "cuda").build(keys[:, :, :590], Step(kv_heads=2))
        alone.append(keys[:, :, 590 : 596 + n], Step(kv_heads=2))
        own = alone.select(queries[:, :, n : n + 1], 20, Step(kv_heads=2)).indices
        assert alike(together[:, :, n : n + 1], own) > 0.99


@pytest.mark.parametrize("spec", SPECS)
def test_threads_are_as_before(spec):
    before = faiss.omp_get_max_threads()
    index = on(spec, "cuda").build(drawn(1, 2, 3000, 32), Step(kv_heads=2))
    index.append(drawn(1, 2, 3, 32), Step(kv_heads=2))
    index.select(drawn(1, 4, 1, 32), 64, Step(kv_heads=2))
    index.truncate(2000, Step(kv_heads=2))
    assert faiss.omp_get_max_threads() == before


@pytest.mark.parametrize("spec", SPECS)
def test_threads_of_a_process_search_at_once_on_streams_of_their_own(spec):
    keys, queries = drawn(1, 2, 20000, 64), drawn(8, 4, 1, 64, seed=1)
    index = on(spec, "cuda").build(keys, Step(kv_heads=2))
    want = [index.select(query[None], 64, Step(kv_heads=2)).indices for query in queries]
    torch.cuda.synchronize()

    def search(query):
        with torch.cuda.stream(torch.cuda.Stream()):
            got = [index.select(query[None], 64, Step(kv_heads=2)).indices for _ in range(5)]
            torch.cuda.current_stream().synchronize()
        return got

    with ThreadPoolExecutor(4) as pool:
        for got, one in zip(pool.map(search, queries), want, strict=True):
            assert all(alike(again, one) == 1 for again in got)


@pytest.mark.parametrize("spec", SPECS)
def test_what_faiss_works_in_is_bounded_and_given_back(spec):
    keys, queries = drawn(1, 1, 60000, 64), drawn(1, 64, 1, 64, seed=1)
    index = on(spec, "cuda").build(keys, Step())
    torch.cuda.synchronize()
    ours, device = resources(keys.device), keys.device.index
    before = ours.getTempMemoryAvailable(device)
    index.select(queries, 512, Step())
    torch.cuda.synchronize()
    assert ours.getTempMemoryAvailable(device) == before <= WORKING
