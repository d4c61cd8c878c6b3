"""Queries of one decoding step, which come without a dimension of tokens."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor


def by_sequence(group: dict[str, Tensor], rows: int, layout: str) -> dict[str, Tensor]:
    """Queries [B, H, D] of one decoding step as [B, 1, H, D], weights [B n, H] of some as [B, n, H]."""
    made = dict(group)
    if layout == "bthd":
        for name, x in group.items():
            if name in ("queries", "index_queries") and x.ndim == 3 and len(x) == rows:
                made[name] = x[:, None]
            if name in ("index_weights", "native") and x.ndim == 2 and len(x) % rows == 0:
                made[name] = x.unflatten(0, (rows, -1))
    return made


def one_token(
    group: dict[str, Tensor], tensors: Mapping[str, Tensor], layout: str
) -> dict[str, Tensor]:
    """Queries [B, H, D] beside keys [B, ...] of a batch, of one decoding step: with a dimension of one token."""
    made = dict(group)
    for asks, keeps in (("queries", "keys"), ("index_queries", "index_keys")):
        x, y = made.get(asks), tensors.get(keeps)
        if x is None or y is None or (x.ndim, y.ndim) != (3, 4) or len(x) != len(y):
            continue
        made[asks] = x.unsqueeze(2 if layout == "bhtd" else 1)
        beside = ("native", "index_weights") if asks == "index_queries" else ("native",)
        for name in beside:
            if name in made and made[name].ndim == 2 and len(made[name]) == len(x):
                made[name] = made[name].unsqueeze(1)
    return made
