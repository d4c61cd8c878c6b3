"""Loki's mask of attention weights, over principal components by its own analysis of the keys."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch import Tensor

from public.case import Case, Choices
from public.checkout import Checkout, every_head, slots_of

REPOSITORY = "hpcgroup/loki"
CODE = {
    "pca_analysis/pca.py": ["compute_pca"],
    "methods/pca_topk/utils.py": ["mask_attn_pca_topk"],
}
CASES = (
    Case("loki(channels=4)", "loki(channels=2)", options={"top_r": 4, "top_k": 16}),
    Case("loki(channels=8)", "double_sparsity(channels=8)", seed=1, length=120, width=32, options={"top_r": 8, "top_k": 30}),
)  # fmt: skip


def choices(checkout: Checkout, case: Case, tensors: dict[str, Tensor]) -> Choices:
    drawn = ("parse", "plotly", "plotly.subplots", "plotly.graph_objects")
    analysis = checkout.file("pca_analysis/pca.py", drawn)
    doors = ("methods", "methods.pca_topk")
    code = checkout.module("methods.pca_topk.utils", doors, ("networkx",))
    code.methods.LOGGER = None
    queries, keys = every_head(tensors)
    whole = []
    for head in range(case.heads[0]):
        _, components, _ = analysis.compute_pca(0, head, keys[None], "")
        whole.append(torch.from_numpy(components).T)
    axes, top_r, top_k = (
        torch.stack(whole)[None].float(),
        case.options["top_r"],
        case.options["top_k"],
    )
    newest = queries[:, :, -1:]
    mask, _ = code.mask_attn_pca_topk(
        SimpleNamespace(), 0, newest @ keys.mT, None, newest, keys, axes, axes[..., :top_r], top_r, top_k
    )  # fmt: skip
    return slots_of(mask[0, :, 0] > -torch.inf)
