"""The PQCache masker of sparse-attention-hub, whose k-means begins at the keys that topkit draws."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from public import skylight
from public.case import Case, Choices
from public.checkout import Checkout
from topkit.indexers.base import Step
from topkit.indexers.kmeans import drawn

REPOSITORY = skylight.REPOSITORY
CODE = {
    f"{skylight.PATH}/pq_top_k.py": ["PQCache.add_mask"],
    f"{skylight.PATH}/utils/pq_utils.py": ["kmeans_batched_pytorch"],
}
NOTE = "Its k-means begins at keys drawn at random; here at those that topkit draws by its seed."
CASES = (
    Case("pqcache(m=2, b=3, iterations=10)", "pqcache(m=4, b=3, iterations=10)", length=96,
         options={"heavy_size": 20, "pq_group_factor": 2, "pq_bits": 3, "kmeans_iter": 10}),
    Case("pqcache(m=4, b=4, iterations=20)", "pqcache(m=4, b=3, iterations=20)", seed=1, length=160, width=32,
         options={"heavy_size": 32, "pq_group_factor": 4, "pq_bits": 4, "kmeans_iter": 20}),
)  # fmt: skip


def choices(checkout: Checkout, case: Case, tensors: dict[str, Tensor]) -> Choices:
    code = skylight.module(checkout, "pq_top_k")
    utilities = skylight.module(checkout, "utils.pq_utils")
    slots, count = torch.arange(case.length)[None], torch.tensor([case.length])

    def begun(points: Tensor, clusters: int, **_: Any) -> Tensor:
        step = Step(seed=case.seed)
        return points[:, drawn(slots, count, torch.tensor([clusters]), step)[0, 0]]

    utilities.initialize_batched = begun
    config = code.PQCacheConfig(init_offset=0, metric="euclidean", **case.options)
    return skylight.chosen(checkout, code.PQCache(config), tensors)
