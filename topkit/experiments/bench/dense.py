"""Attention of one query over all keys, by whatever does it here: what there is to beat."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from topkit.experiments.bench import formulas
from topkit.experiments.bench.rows import Row
from topkit.experiments.bench.scale import length_of
from topkit.experiments.bench.session import Case, Session

Attention = Callable[[Tensor, Tensor, Tensor], Any]


def dense_cases(session: Session) -> Iterator[Case]:
    """Each length, alone and in a batch."""
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
    backends = {
        "SDPA cuDNN": _sdpa(SDPBackend.CUDNN_ATTENTION),
        "SDPA flash": _sdpa(SDPBackend.FLASH_ATTENTION),
    }
    if find_spec("flashinfer") and batch == 1:
        backends["flashinfer"] = _flashinfer
    if find_spec("xformers"):
        backends["xformers"] = _xformers
    return backends


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
    by_group = queries.transpose(1, 2).unflatten(2, (groups, -1))
    shared = (x.transpose(1, 2)[:, :, :, None].expand(*by_group.shape[:1], -1, *by_group.shape[2:])
              for x in (keys, values))  # fmt: skip
    return import_module("xformers.ops").memory_efficient_attention_forward(by_group, *shared)
