"""ClusterKV's selection among clusters, whose centroids are topkit's, of values that tell the keys apart."""

from __future__ import annotations

import torch
from torch import Tensor

from public.case import Case, Choices
from public.checkout import Checkout, OnCPU, every_head, slots_of
from topkit.indexers.base import Cache, Step
from topkit.indexers.clustered import ClusteredIndex
from topkit.indexers.spec import parse

REPOSITORY = "sjtu-zhao-lab/ClusterKV"
CODE = {"accuracy/cluster_attention.py": ["build_cluster", "cluster_attn_out"]}
NOTE = (
    "Its k-means begins at random keys; here its centroids are those that topkit found. Its CUDA kernel that lists "
    "the keys of the best clusters is a loop, and what it puts on a GPU is put on the CPU."
)
CASES = (
    Case("clusterkv(per_cluster=8, sink=2, iterations=50)", "clusterkv(per_cluster=4, sink=2, iterations=50)",
         length=90, width=96, options={"token_budget": 24, "sink": 2}),
    Case("clusterkv(per_cluster=5, sink=0, iterations=50)", "clusterkv(per_cluster=5, sink=4, iterations=50)",
         seed=1, length=125, width=128, heads=(6, 2), options={"token_budget": 40, "sink": 0}),
)  # fmt: skip


def choices(checkout: Checkout, case: Case, tensors: dict[str, Tensor]) -> Choices:
    doors = ("accuracy",)
    raft = ("pylibraft", "pylibraft.cluster", "pylibraft.neighbors", "pylibraft.config")
    drawn = (*raft, "rmm", "clusterkv", "clusterkv._clusterkv_knl")
    code = checkout.module("accuracy.cluster_attention", doors, drawn)
    recipe = parse(case.recipe)
    step = Step(seed=case.seed, kv_heads=case.heads[1], inputs={"cache": Cache(tensors["keys"])})
    index = recipe.build(tensors["keys"], step.given_to(recipe))
    assert isinstance(index, ClusteredIndex)
    found = iter(index.clusters.centroids[0].float())
    code.fit = lambda *_: (next(found), None, None)
    code.search_indices = _members
    queries, keys = every_head(tensors)
    group = case.heads[0] // case.heads[1]
    budget, sink = case.options["token_budget"], case.options["sink"]
    count = index.clusters.centroids.shape[2]
    own = torch.eye(case.length, case.width).expand(1, case.heads[0], -1, -1)
    with OnCPU():
        centroids, members, _, sizes, ends = code.build_cluster(
            tensors["keys"][:, :, sink:], count, False, None, group, None
        )
        out = code.cluster_attn_out(
            queries[:, :, -1:], keys, own, None, case.length, centroids, members, sizes, ends,
            group, 2, budget, sink, "truc", None,
        )  # fmt: skip
    return slots_of(out.view(case.heads[0], case.width) > 0)


def _members(
    needed: Tensor, _: Tensor, starts: Tensor, ends: Tensor, members: Tensor, out: Tensor
) -> None:
    """Write the keys of each head's best clusters one after the other."""
    for head in range(len(out)):
        own = members[head * len(members) // len(out)]
        each = [own[starts[head, n] : ends[head, n]] for n in range(int(needed[head]))]
        keys = torch.cat(each)
        out[head, : len(keys)] = keys
