"""Attention of one query over chosen keys, beside a gather and SDPA in torch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from topkit.experiments.bench import formulas
from topkit.experiments.bench.rivals import beside
from topkit.experiments.bench.rows import Row
from topkit.experiments.bench.scale import length_of
from topkit.experiments.bench.session import Case, Session
from topkit.kernels.gather_attention import gather_attention


def gather_cases(session: Session) -> Iterator[Case]:
    """Lists of k slots for each KV head, shuffled; a turn reads other slots of the same cache."""
    s, length = session.scale, session.scale.lengths[0]
    for batch in s.gathered:
        what = f"batch {batch} x {length_of(length)}"

        def measure(batch: int = batch, what: str = what) -> Iterator[Row]:
            moved = formulas.gather(batch, s.groups, s.k, s.dim)
            session.require(1.5 * formulas.dense(batch, length, s.groups, s.dim).counted)
            keys = session.drawn(batch, s.groups, length, s.dim)
            values = session.drawn(batch, s.groups, length, s.dim)
            queries = session.drawn(batch, s.heads, 1, s.dim)
            lists = [_lists(session, batch, length) for _ in range(session.sets(moved.counted))]

            def ours(slots: Tensor) -> Tensor:
                return gather_attention(
                    queries, keys, values, slots, scaling=s.dim**-0.5, backend=session.backend
                )

            def plain(slots: Tensor) -> Tensor:
                at = slots[:, :, 0, :, None].expand(-1, -1, -1, s.dim)
                chosen = keys.gather(2, at), values.gather(2, at)
                return scaled_dot_product_attention(queries, *chosen, enable_gqa=True)

            rivals = {"torch gather + SDPA": plain}
            shape = {"dtype": "bfloat16", "batch": batch, "length": length, "k": s.k}
            yield from beside(session, "gather", what, ours, rivals, lists, moved, shape)

        yield what, measure


def _lists(session: Session, batch: int, length: int) -> Tensor:
    """Distinct slots [B, H, 1, k]: one of each of k stretches, shuffled."""
    s = session.scale
    shape, wide = (batch, s.groups, 1, s.k), length // s.k
    options: dict[str, Any] = {"generator": session.generator, "device": session.device}
    slots = torch.randint(0, wide, shape, **options)
    slots += torch.arange(s.k, device=session.device) * wide
    return slots.gather(-1, torch.rand(shape, **options).argsort(-1))
