"""Squeezed Attention's centroids, threshold and lookup, of clusters that are topkit's."""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.utils import dlpack

from public.case import Case, Choices
from public.checkout import Checkout
from topkit.indexers.base import Cache, Step
from topkit.indexers.clustered import ClusteredIndex
from topkit.indexers.spec import parse

REPOSITORY = "SqueezeAILab/SqueezedAttention"
CODE = {
    "squeezedattention/clustering.py": ["run_clustering", "run_global_threshold"],
    "squeezedattention/kernels.py": ["_fwd_centroid_simple_kernel_qk"],
}
NOTE = (
    "Its k-means is a GPU library's; here its clusters are those that topkit found. One layer has the threshold to "
    "itself. The Triton kernel of the lookup runs in the interpreter, launched as by its modeling_llama.py."
)
CASES = (
    Case("squeezed(share=0.2, sparsity=0.7, window=8)", "squeezed(share=0.2, sparsity=0.9, window=8)",
         length=88, k=88, width=64, heads=(4, 4), options={"clusters": 16, "window": 8, "sparsity": 0.7}),
    Case("squeezed(share=0.1, sparsity=0.9, window=20)", "squeezed(share=0.1, sparsity=0.5, window=20)", seed=1,
         length=220, k=220, width=64, heads=(4, 4), options={"clusters": 20, "window": 20, "sparsity": 0.9}),
)  # fmt: skip


def choices(checkout: Checkout, case: Case, tensors: dict[str, Tensor]) -> Choices:
    os.environ["TRITON_INTERPRET"] = "1"
    code = checkout.file("squeezedattention/clustering.py", ("cupy", "cuml", "cuml.cluster"))
    kernel = checkout.file("squeezedattention/kernels.py")._fwd_centroid_simple_kernel_qk
    labels = iter(_labels(case, tensors))
    code.fromDlpack = lambda x: x
    code.KMeans = lambda **_: SimpleNamespace(fit=lambda _: None, labels_=_Labels(next(labels)))
    count, window = case.options["clusters"], case.options["window"]
    queries, keys = {0: tensors["queries"]}, {0: tensors["keys"]}
    centroids, of = code.run_clustering(keys, count, window, device="cpu")
    thresholds = code.run_global_threshold(
        keys, queries, centroids, of, count, window, device="cpu"
    )
    shares = _shares(kernel, tensors["queries"][:, :, -1:], centroids[0], of[0], case)
    chosen = shares.gather(1, of[0][0]) > thresholds[case.options["sparsity"]]
    newest = list(range(case.length - window, case.length))
    return [head.nonzero()[:, 0].tolist() + newest for head in chosen]


class _Labels:
    """Clusters of keys, handed over as a GPU library would."""

    def __init__(self, labels: Tensor) -> None:
        self.labels = labels

    def toDlpack(self) -> Any:
        make: Any = dlpack
        return make.to_dlpack(self.labels)


def _labels(case: Case, tensors: dict[str, Tensor]) -> Tensor:
    """The cluster that topkit puts each key of the prompt before the window in [H, n]."""
    recipe, own = parse(case.recipe), Cache(tensors["keys"])
    handed = {"cache": own, "prefill_queries": tensors["queries"]}
    step = Step(seed=case.seed, scaling=case.width**-0.5, kv_heads=case.heads[1], inputs=handed)
    index = recipe.build(tensors["keys"], step.given_to(recipe))
    assert isinstance(index, ClusteredIndex)
    found = index.clusters
    labels = torch.zeros(case.heads[1], case.length - case.options["window"], dtype=torch.int64)
    for head in range(case.heads[1]):
        for n, (first, size) in enumerate(
            zip(found.first[0, head], found.sizes[0, head], strict=True)
        ):
            labels[head, found.members[0, head, first : first + size].long()] = n
    return labels


def _shares(kernel: Any, queries: Tensor, centroids: Tensor, of: Tensor, case: Case) -> Tensor:
    """What the kernel estimates that each key of a cluster gets of one query's attention [H, C]."""
    heads, count = centroids.shape[1:3]
    sizes = torch.stack([head.bincount(minlength=count) for head in of[0]])[None].float()
    out, shares = torch.zeros(1, heads, count, 1), torch.zeros(1, heads, count + 1, 1)
    strides = [s for x in (queries, centroids, out, shares) for s in x.stride()]
    kernel[(1, heads, 1)](
        queries, centroids, sizes, of, case.width**-0.5, out, shares, 0.0, *strides,
        1, heads, 1, of.shape[2], count, BLOCK_M=16, BLOCK_N=32, BLOCK_DMODEL=case.width,
    )  # fmt: skip
    return shares[0, :, :count, 0]
