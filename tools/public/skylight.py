"""A masker of sparse-attention-hub, asked for the newest query."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from public.case import Choices
from public.checkout import Checkout, slots_of

REPOSITORY = "skylight-org/sparse-attention-hub"
_HUB = "sparse_attention_hub"
_RESEARCH = f"{_HUB}.sparse_attention.research_attention"
PATH = f"{_RESEARCH}.maskers.fixed.implementations".replace(".", "/")
_DOORS = (_HUB, f"{_HUB}.sparse_attention", _RESEARCH)


def module(checkout: Checkout, name: str) -> Any:
    """A file of the fixed maskers; of Ray it takes the search space alone, which does not choose."""
    return checkout.module(f"{_RESEARCH}.maskers.fixed.implementations.{name}", _DOORS, ("ray",))


def chosen(checkout: Checkout, masker: Any, tensors: dict[str, Tensor]) -> Choices:
    queries, keys, values = (tensors[name] for name in ("queries", "keys", "values"))
    masks = checkout.module(f"{_HUB}.sparse_attention.utils.mask", _DOORS)
    shape = (1, queries.shape[1], 1, keys.shape[2])
    nothing = masks.Mask.create_empty_mask(shape, dtype=torch.float32, device=keys.device)
    group = queries.shape[1] // keys.shape[1]
    mask = masker.add_mask(
        keys=keys, queries=queries[:, :, -1:], values=values, attention_mask=None,
        scaling=queries.shape[-1] ** -0.5, dropout=0.0, sparse_meta_data={}, previous_mask=nothing,
        layer_idx=0, module=SimpleNamespace(num_key_value_groups=group),
    )  # fmt: skip
    return slots_of(mask.get_dense_mask()[0, :, 0] > 0)
