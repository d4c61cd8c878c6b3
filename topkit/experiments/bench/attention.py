"""Attention of one query over chosen keys, and over all of them: what there is to beat."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from topkit.experiments.bench import formulas
from topkit.experiments.bench.kernels import beside
from topkit.experiments.bench.rows import Row
from topkit.experiments.bench.session import Case, Session, length_of
from topkit.kernels.gather_attention import gather_attention

Attention = Callable[[Tensor, Tensor, Tensor], Any]


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
    told: dict[str, Any] = {"generator": session.generator, "device": session.device}
    slots = torch.randint(0, wide, shape, **told)
    slots += torch.arange(s.k, device=session.device) * wide
    return slots.gather(-1, torch.rand(shape, **told).argsort(-1))


def dense_cases(session: Session) -> Iterator[Case]:
    """Every key read, by whatever does it here."""
    s = session.scale
    for length in (s.shortest, *s.lengths):
        for batch in (1, s.batch):
            what = f"batch {batch} x {length_of(length)}"
            yield what, lambda batch=batch, length=length: measured_dense(session, batch, length)


def measured_dense(session: Session, batch: int, length: int) -> Iterator[Row]:
    """A row a backend; their times are kept, for the steps of the same run."""
    s, what = session.scale, f"batch {batch} x {length_of(length)}"
    moved = formulas.dense(batch, length, s.groups, s.dim)
    several = session.sets(moved.counted)
    session.require(several * moved.counted * 1.1)
    queries = session.drawn(batch, s.heads, 1, s.dim)
    caches = [
        tuple(session.drawn(batch, s.groups, length, s.dim) for _ in range(2))
        for _ in range(several)
    ]
    shape = {"dtype": "bfloat16", "batch": batch, "length": length}
    for name, attend in _backends(session, batch).items():

        def measure(attend: Attention = attend, name: str = name) -> Row:
            spans = session.timed([lambda c=c: attend(queries, *c) for c in caches])
            session.dense.setdefault((batch, length), {})[name] = spans
            return {"spans": spans, "moved": moved, **shape}

        yield session.attempt("dense", what, name, measure)


def _backends(session: Session, batch: int) -> dict[str, Attention]:
    if not session.cuda:
        return {"SDPA math": _sdpa(SDPBackend.MATH)}
    found = {
        "SDPA cuDNN": _sdpa(SDPBackend.CUDNN_ATTENTION),
        "SDPA flash": _sdpa(SDPBackend.FLASH_ATTENTION),
    }
    if find_spec("flashinfer") and batch == 1:
        found["flashinfer"] = _flashinfer
    if find_spec("xformers"):
        found["xformers"] = _xformers
    return found


def _sdpa(backend: SDPBackend) -> Attention:
    def attend(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        with sdpa_kernel(backend):
            return scaled_dot_product_attention(queries, keys, values, enable_gqa=True)

    return attend


def _flashinfer(queries: Tensor, keys: Tensor, values: Tensor) -> object:
    return import_module("flashinfer").single_decode_with_kv_cache(
        queries[0, :, 0], keys[0], values[0], kv_layout="HND", use_tensor_cores=True
    )


def _xformers(queries: Tensor, keys: Tensor, values: Tensor) -> object:
    groups = keys.shape[1]
    asked = queries.transpose(1, 2).unflatten(2, (groups, -1))
    shared = (x.transpose(1, 2)[:, :, :, None].expand(*asked.shape[:1], -1, *asked.shape[2:])
              for x in (keys, values))  # fmt: skip
    return import_module("xformers.ops").memory_efficient_attention_forward(asked, *shared)
