"""Search of one step's queries by FAISS's inverted lists, beside scoring and selecting topkit's own codes."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from topkit.errors import InputError
from topkit.experiments.bench import timing
from topkit.experiments.bench.data import recorded, stretched
from topkit.experiments.bench.rows import OURS, Row
from topkit.experiments.bench.scale import length_of
from topkit.experiments.bench.session import Case, Session
from topkit.experiments.decode.driver import Driver
from topkit.indexers.base import Cache
from topkit.indexers.faiss_base import import_faiss
from topkit.indexers.spec import parse
from topkit.kernels.score import score

# Of 128K keys 16 lists of 256 hold 8K.
LISTS = {"faiss_ivf": "IVF-Flat", "faiss_ivfpq": "IVF-PQ"}


def ann_cases(session: Session) -> Iterator[Case]:
    """A query for each head of a batch, at the shortest of the long contexts."""
    s = session.scale
    what = f"{s.batch} x {s.groups} lists x {length_of(s.lengths[0])}, k {s.k}"
    yield what, lambda: _searched(session, what)


def _searched(session: Session, what: str) -> Iterator[Row]:
    s, length = session.scale, session.scale.lengths[0]
    of_keys = 4 * s.batch * s.groups * length * s.dim
    session.require(4 * of_keys)
    samples = -(-length // s.sample_tokens)
    tensors = stretched(session, recorded(session, samples), length)
    best = score(tensors.queries, tensors.keys).topk(s.k).indices
    package, rivals = ("faiss-gpu" if session.cuda else "faiss-cpu"), dict[str, float]()
    for name, spec in _specs(session).items():
        ours = name == OURS
        implementation = name if ours else f"{name} ({package})"
        if not ours and (lacking := _lacking(session)):
            yield session.row("ann", what, implementation, note=f"skipped: {lacking}")
            continue
        fastest = min(rivals.items(), key=lambda one: one[1], default=None) if ours else None
        measure = partial(_measured, session, spec, tensors, best, fastest)
        row = session.attempt("ann", what, implementation, measure)
        if row["median"] is not None:
            rivals[implementation] = row["median"]
        yield row
        session.release()


def _lacking(session: Session) -> str:
    """What is missing for FAISS's rows."""
    try:
        import_faiss("cuda" if session.cuda else "cpu")
    except InputError as error:
        return str(error)
    return ""


def _specs(session: Session) -> dict[str, str]:
    """FAISS's, and at last topkit's own: a list for each query head."""
    lists = max(4, session.scale.lengths[0] // 512)
    where = (
        f"nlist={lists}, nprobe={max(1, lists // 16)}"
        if session.cuda
        else f"nlist={lists}, nprobe={lists // 2}"
    )
    device = ", device='cuda'" if session.cuda else ""
    specs = {label: f"{name}({where}{device})" for name, label in LISTS.items()}
    return {**specs, OURS: "quantized(dtype='int4')"}


def _measured(
    session: Session, spec: str, tensors: Any, best: Tensor, against: tuple[str, float] | None
) -> dict[str, Any]:
    recipe, keys = parse(spec), tensors.keys
    driver = Driver(
        recipe, 0, tensors.scaling, keys.shape[1], backend=session.backend, ordered=False
    )
    index = driver.build(Cache(keys, tensors.values), {})
    step = driver.step({})
    chosen = index.select(tensors.queries, session.scale.k, step).indices
    spans = timing.streamed(
        lambda: index.select(tensors.queries, session.scale.k, step), session.device
    )
    return {
        "spans": spans, "against": against, "dtype": spec, "batch": len(keys), "length": keys.shape[2],
        "k": session.scale.k, "recall": _recall(chosen, best), "bytes": index.nbytes,
    }  # fmt: skip


def _recall(chosen: Tensor, best: Tensor) -> float:
    """The share of the best slots [B, H, 1, k] that were chosen."""
    slots = torch.cat([chosen, best], -1).sort(-1).values
    twice = (slots[..., 1:] == slots[..., :-1]) & (slots[..., 1:] >= 0)
    return float(twice.sum() / best.numel())
