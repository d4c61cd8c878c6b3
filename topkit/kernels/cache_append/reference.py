"""A token's keys and values written into a cache, in torch."""

from __future__ import annotations

from torch import Tensor


def cache_append(
    keys: Tensor, values: Tensor, new_keys: Tensor, new_values: Tensor, at: Tensor
) -> None:
    """Writes new_keys [B, Hk, 1, D] and new_values [B, Hk, 1, Dv] at the slot `at` [1]."""
    keys.index_copy_(2, at, new_keys)
    values.index_copy_(2, at, new_values)
