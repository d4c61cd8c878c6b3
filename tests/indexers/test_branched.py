"""Branches of one index select as forks of it whose rows were copied."""

import pytest
import torch

import topkit
from topkit.contract.draw import RANDOM
from topkit.contract.memory import tensors_in_reach
from topkit.indexers import INDEXERS
from topkit.indexers.base import Cache, Index, Selection, Step
from topkit.indexers.branched import BranchedIndex, branched, held_once

SPECS = [
    "sign()",
    "sign(center=True)",
    "quantized(dtype='int2', center=True, hadamard=True)",
    "keep(shared(sign(center=True)), sink=1)",
    "quantized(dtype='int4')",
    "quantized(dtype='fp8_e4m3', scale='pow2')",
    "quantized(dtype='mxfp4', center=True)",
    "quantized(dtype='nvfp4', center=True, hadamard=True)",
    "keep(pqcache(m=2, b=3), sink=1)",
    "shared(quantized(), how='max')",
    "shared(sign(), per='layer')",
    "keep(refine(sign(), factor=2), sink=2)",
    "top_p(quantized(dtype='int2'), mass=0.6)",
    "sampled(quantized(dtype='int4'))",
    "loki(channels=0.5)",
    "keep(shared(double_sparsity(channels=8)), sink=1)",
    "rabitq()",
    "keep(rabitq(rerank=True), sink=1)",
    "magicpig(bits=2, tables=6, sink=1, window=2)",
    "magicpig(bits=3, tables=20, sink=0, window=0, center=False)",
    "sparq(channels=8, window=3)",
    "shared(sparq(mean_value=False))",
    "tactic(cluster_size=4)",
    "misa(weights='given', heads=2, block=8)",
    "keep(misa(weights='given', dtype='fp8', heads=1, block=4, candidates=8), sink=1)",
    "clusterkv(per_cluster=4, sink=2, update=4)",
    "clusterkv(per_cluster=3, sink=0, update=0)",
    "retroinfer(per_cluster=4, sink=1, window=2, update=4, segment=16)",
    "squeezed(share=0.3, sparsity=0.5, window=2)",
    "quest(page_size=4)",
    "quest(page_size=37)",
    "keep(quest(page_size=64), sink=1)",
    "quest(page_size=4, min_pages=3)",
    "moba(page_size=5)",
    "infllm(page_size=8, local=5)",
    "hisa(page_size=4, pages=3)",
    "hisa(page_size=4, pages=3, weights='given', dtype='fp8')",
    "snapkv(window=2)",
    "shared(snapkv(window=2, pool='max'))",
    "h2o()",
    "retrieval_attention(degree=4, nearest=3, ef=4)",
    "twilight(quest(page_size=4))",
    "twilight(shared(sign(), per='layer'), mass=0.6, candidates=0.5)",
    "previous(quantized(dtype='int8'), factor=2)",
    "tidaldecode(quantized())",
    "streaming_llm(sink=1, window=6)",
    "exact()",
]
HEADS, GROUPS, WIDTH, PREFIX = 4, 2, 32, 37


def drawn(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Rows:
    """Slots of some rows behind one prefix, and what a step of the newest of them hands over."""

    def __init__(self, spec: str, rows: int) -> None:
        self.recipe, self.turned = topkit.indexer(spec), torch.arange(rows)
        tensors = {}
        for seed, (name, heads) in enumerate({"keys": GROUPS, "values": GROUPS, "own": 1}.items()):
            prefix = drawn(1, heads, PREFIX, WIDTH, seed=seed).expand(rows, -1, -1, -1)
            tensors[name] = torch.cat([prefix, drawn(rows, heads, 8, WIDTH, seed=9 + seed)], 2)
        self.tensors = tensors | {
            "asked": drawn(rows, HEADS, 2, WIDTH, seed=4),
            "weights": drawn(rows, 2, HEADS, seed=5),
        }

    def __getattr__(self, name: str) -> torch.Tensor:
        return self.tensors[name][self.turned]

    def step(self, length: int, before: int | None = None, rows: int | None = None) -> Step:
        """A step of the slots `before` <= s < length of the first `rows`, or of the two newest queries."""
        inputs = {
            "cache": Cache(self.keys[:rows, :, :length], self.values[:rows, :, :length]),
            "prefill_queries": drawn(1, HEADS, 4, WIDTH, seed=6).expand(rows or 3, -1, -1, -1),
            "index_keys": self.own[:rows, :, length - 2 if before is None else before : length],
            "index_queries": self.asked,
            "index_weights": self.weights,
        }
        return Step(scaling=0.2, kv_heads=GROUPS, inputs=inputs).given_to(self.recipe)

    def built(self, rows: int) -> Index:
        return self.recipe.build(
            self.keys[:rows, :, :PREFIX].clone(), self.step(PREFIX, 0, rows=rows)
        )

    def append(self, index: Index, end: int) -> None:
        before = index.length
        index.append(self.keys[:, :, before:end], self.step(end, before))


def alike(mine: Selection, other: Selection) -> None:
    assert mine.indices.equal(other.indices)
    assert mine.bytes_read == pytest.approx(other.bytes_read)
    assert mine.keys_scored == pytest.approx(other.keys_scored)
    close = torch.testing.assert_close
    close(mine.log_weights, other.log_weights)
    if other.rest is not None:
        assert mine.rest is not None
        close(vars(mine.rest), vars(other.rest))


@pytest.mark.parametrize("spec", SPECS)
def test_branches_select_as_copies(spec: str) -> None:
    """Appended to twice, forked, cut and gathered between; they count as many bytes, in whatever way they are held."""
    one = Rows(spec, 3)
    ours, theirs = branched(one.built(1), 3), one.built(3)

    def same(length: int) -> None:
        assert ours.length == theirs.length == length
        assert ours.nbytes == theirs.nbytes
        count = 1 if one.recipe.traits().remembers else 2
        queries = drawn(3, HEADS, count, WIDTH, seed=7)[one.turned]
        mine, other = (i.select_many(queries, [3, 6], one.step(length)) for i in (ours, theirs))
        for k in (3, 6):
            alike(mine[k], other[k])

    same(PREFIX)
    for end in (38, 43):
        for index in (ours, theirs):
            one.append(index, end)
        same(end)
    kept = ours.fork()
    one.append(ours, 44)
    assert kept.length == 43
    ours = kept
    same(43)
    for length in (40, 35):
        for index in (ours, theirs):
            index.truncate(length, one.step(length))
        same(length)
    for index in (ours, theirs):
        one.append(index, 40)
    same(40)
    one.turned = torch.tensor([2, 0])
    for index in (ours, theirs):
        index.reorder(one.turned)
    same(40)


@pytest.mark.parametrize(
    "spec",
    [
        *("sign()", "sign(center=True)", "quantized(dtype='nvfp4', center=True)"),
        *("pqcache(m=2, b=3)", "loki()", "double_sparsity()", "rabitq(rerank=True)", "magicpig()"),
        *("misa(weights='given')", "sparq()", "tactic()"),
    ],
)
def test_the_trunk_is_held_once_and_counted_for_each_row(spec: str) -> None:
    built = Rows(spec, 5).built(1)
    twin = branched(built, 5)
    assert isinstance(twin, BranchedIndex)
    assert all(twin.trunk[name] is code for name, code in built.codes.items())  # type: ignore[attr-defined]
    assert twin.nbytes == 5 * built.nbytes
    # What no key has for itself, a mean or a map, may be there for each row.
    codes = sum(code.untyped_storage().nbytes() for code in built.codes.values())  # type: ignore[attr-defined]
    assert held(twin) <= codes + 5 * (held(built) - codes)


@pytest.mark.parametrize(
    "spec",
    [
        *("clusterkv(per_cluster=4)", "retroinfer(per_cluster=4, window=2)", "squeezed(window=2)"),
        *("pqcache(m=2, b=3)", "tactic(cluster_size=4)"),
    ],
)
def test_clusters_are_held_once_and_counted_for_each_row(spec: str) -> None:
    """In forks of some rows too."""
    built = Rows(spec, 5).built(1)
    twin = branched(built, 5)
    some = twin.fork()
    some.reorder(torch.tensor([4, 0, 1]))
    for index, rows in ((twin, 5), (some, 3)):
        assert index.nbytes == rows * built.nbytes > 0
        assert held(index) <= held(built) + 8 * rows


# FAISS holds what it shares behind a wall.
@pytest.mark.parametrize("name", sorted(n for n, x in INDEXERS.items() if x.requires != "faiss"))
def test_it_is_known_of_a_recipe_whether_its_branches_share_codes(name: str) -> None:
    if name == "hashattention":
        pytest.skip("reads a file of weights")
    for spec in INDEXERS[name].examples:
        recipe = topkit.indexer(spec)
        built = RANDOM(recipe, length=700, rows=1).build(recipe)
        assert (held(branched(built, 8)) <= 4 * held(built)) == held_once(recipe)


def held(index: Index) -> int:
    """Bytes of the storages that an index reaches, each once."""
    storages = {
        x.untyped_storage().data_ptr(): x.untyped_storage() for x in tensors_in_reach(index)
    }
    return sum(storage.nbytes() for storage in storages.values())
