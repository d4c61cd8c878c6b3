"""SnapKV's compression of a prompt, of values that are the numbers of their slots."""

from __future__ import annotations

from torch import Tensor

from public.case import Case, Choices
from public.checkout import Checkout, every_head, numbered

REPOSITORY = "FasterDecoding/SnapKV"
CODE = {"snapkv/monkeypatch/snapkv_utils.py": ["SnapKVCluster.update_kv"]}
CASES = (
    Case("snapkv(window=8, kernel=5, pool='avg')", "snapkv(window=8, kernel=3, pool='avg')",
         options={"window_size": 8, "max_capacity_prompt": 24, "kernel_size": 5, "pooling": "avgpool"}),
    Case("snapkv(window=16, kernel=7, pool='max')", "snapkv(window=16, kernel=7, pool='avg')", seed=1, length=150,
         options={"window_size": 16, "max_capacity_prompt": 60, "kernel_size": 7, "pooling": "maxpool"}),
)  # fmt: skip


def choices(checkout: Checkout, case: Case, tensors: dict[str, Tensor]) -> Choices:
    code = checkout.file("snapkv/monkeypatch/snapkv_utils.py")
    queries, keys = every_head(tensors)
    cluster = code.SnapKVCluster(**case.options)
    _, kept = cluster.update_kv(keys, queries, numbered(keys), None, 1)
    return [sorted(head[:, 0].int().tolist()) for head in kept[0]]
