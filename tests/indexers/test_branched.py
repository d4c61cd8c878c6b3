"""Branches of one index select as forks of it whose rows were copied."""

import pytest
import torch

import topkit
from topkit.indexers.base import Cache, Step
from topkit.indexers.branched import BranchedIndex, branched

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
    "quest(page_size=4)",
    "streaming_llm(sink=1, window=6)",
    "exact()",
]
HEADS, GROUPS, WIDTH = 4, 2, 32


def keys(rows: int, count: int, seed: int) -> torch.Tensor:
    return torch.randn(rows, GROUPS, count, WIDTH, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("spec", SPECS)
def test_branches_select_as_copies(spec: str) -> None:
    """Appended to twice, forked, cut and gathered between; they count as many bytes, in whatever way they are held."""
    recipe, rows = topkit.indexer(spec), 3
    prefix, tail = keys(1, 37, 0), keys(rows, 8, 1)
    whole = torch.cat([prefix.expand(rows, -1, -1, -1), tail], 2)

    def step(length: int) -> Step:
        cache = Cache(whole[:, :, :length])
        return Step(scaling=0.2, kv_heads=GROUPS, inputs={"cache": cache}).given_to(recipe)

    built = recipe.build(
        prefix, Step(kv_heads=GROUPS, inputs={"cache": Cache(prefix)}).given_to(recipe)
    )
    ours, theirs = branched(built, rows), built.fork()
    theirs.reorder(torch.zeros(rows, dtype=torch.long))
    queries = torch.randn(rows, HEADS, 1, WIDTH, generator=torch.Generator().manual_seed(2))

    def same(length: int) -> None:
        assert ours.length == theirs.length == length
        assert ours.nbytes == theirs.nbytes
        mine, other = (i.select_many(queries, [3, 6], step(length)) for i in (ours, theirs))
        for k in (3, 6):
            assert mine[k].indices.equal(other[k].indices)
            if other[k].log_weights is not None:
                torch.testing.assert_close(mine[k].log_weights, other[k].log_weights)
            assert mine[k].bytes_read == pytest.approx(other[k].bytes_read)

    same(37)
    for end in (38, 43):
        for index in (ours, theirs):
            index.append(whole[:, :, index.length : end], step(end))
        same(end)
    kept = ours.fork()
    ours.append(whole[:, :, 43:44] + 1, step(44))
    assert kept.length == 43
    ours = kept
    same(43)
    for index in (ours, theirs):
        index.truncate(40, step(40))
    same(40)
    turned = torch.tensor([2, 0, 1])
    whole, queries = whole[turned], queries[turned]
    for index in (ours, theirs):
        index.reorder(turned)
    same(40)


@pytest.mark.parametrize(
    "spec",
    ["sign()", "sign(center=True)", "quantized(dtype='nvfp4', center=True)", "pqcache(m=2, b=3)"],
)
def test_the_trunk_is_held_once_and_counted_for_each_row(spec: str) -> None:
    built = topkit.indexer(spec).build(keys(1, 64, 0), Step())
    twin = branched(built, 5)
    assert isinstance(twin, BranchedIndex)
    assert all(twin.trunk[name] is code for name, code in built.codes.items())  # type: ignore[attr-defined]
    assert twin.nbytes == 5 * built.nbytes
