"""RetroInfer's segmented clustering, its kernels interpreted on the CPU, and the clusters that a query ranks first."""

from __future__ import annotations

import os

import torch
from torch import Tensor

from public.case import Case, Choices
from public.checkout import Checkout

REPOSITORY = "microsoft/RetrievalAttention"
CODE = {"cache_hub/kmeans.py": ["segment_k_means"]}
NOTE = (
    "Its Triton kernels run in the interpreter. Ranking the clusters is a CUDA kernel; here a softmax over "
    "centroids, summed over a group, as cache_hub/retroinfer_cache.py then has it."
)
DEPARTS = (
    "Its last assignment is over the centroids of all segments, so that keys leave their segment, where the paper "
    "clusters each segment by itself, as the recipe does. Of one segment the choice is the same (the first case)."
)
AGREEMENT = (1.0, 0.92)
CASES = (
    Case("retroinfer(per_cluster=8, sink=2, window=5, update=0, segment=128, estimate=0.0)",
         "retroinfer(per_cluster=16, sink=2, window=5, update=0, segment=128, estimate=0.0)",
         length=135, options={"sink": 2, "window": 5, "clusters": 16, "segments": 1, "nprobe": 4}),
    Case("retroinfer(per_cluster=16, sink=4, window=8, update=0, segment=128, estimate=0.0)",
         "retroinfer(per_cluster=16, sink=4, window=8, update=0, segment=256, estimate=0.0)", seed=1,
         length=268, width=32, options={"sink": 4, "window": 8, "clusters": 16, "segments": 2, "nprobe": 5}),
)  # fmt: skip


def choices(checkout: Checkout, case: Case, tensors: dict[str, Tensor]) -> Choices:
    os.environ["TRITON_INTERPRET"] = "1"
    code = checkout.file("cache_hub/kmeans.py")
    sink, window, clusters, segments, probed = case.options.values()
    inner = slice(sink, case.length - window)
    keys, values = tensors["keys"][0, :, inner], tensors["values"][0, :, inner].contiguous()
    mean = keys.mean(1, keepdim=True)
    centroids, _, members, sizes = code.segment_k_means(
        (keys - mean).contiguous(), values, clusters, num_segments=segments
    )
    queries = tensors["queries"][0, :, -1].unflatten(0, (case.heads[1], -1))
    shares = (queries @ (centroids + mean).mT * case.width**-0.5).softmax(-1).sum(1)
    ranked = shares.masked_fill(sizes == 0, -torch.inf).topk(probed).indices.tolist()
    ends = {*range(sink), *range(case.length - window, case.length)}
    return [
        sorted(ends | {sink + int(m) for c in best for m in members[group, c, : sizes[group, c]]})
        for group, best in enumerate(ranked)
    ]
