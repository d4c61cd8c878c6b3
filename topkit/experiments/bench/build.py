"""CPU time of building what takes longest to build, from which `faiss_hnsw` foresees it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import torch

from topkit.errors import InputError
from topkit.experiments.bench.rows import OURS, Row
from topkit.experiments.bench.scale import length_of
from topkit.experiments.bench.session import Case, Session
from topkit.indexers.base import Step
from topkit.indexers.faiss_base import import_faiss
from topkit.indexers.faiss_hnsw import faiss_hnsw

SPEC = "faiss_hnsw()"
TURNS = 3


def build_cases(session: Session) -> Iterator[Case]:
    """A graph over normal keys of one head: of all threads together, so that other processes do not count."""
    s = session.scale
    length = 2 * s.captured
    what = f"{SPEC}, 1 head x {length_of(length)}, CPU time"

    def measure() -> dict[str, Any]:
        keys = session.drawn(1, 1, length, s.dim, dtype=torch.float32)
        spans: list[float] = []
        for _ in range(TURNS):
            began = time.process_time()
            faiss_hnsw(minutes=60).build(keys, Step())
            spans.append(time.process_time() - began)
        return {"spans": spans, "unit": "s", "dtype": "float32", "batch": 1, "length": length}

    def rows() -> Iterator[Row]:
        try:
            import_faiss()
        except InputError as error:
            yield session.row("build", what, OURS, note=f"skipped: {error}")
        else:
            yield session.attempt("build", what, OURS, measure)

    yield what, rows
