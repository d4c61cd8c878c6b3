"""Exact top-k of float32 rows, beside torch's and FlashInfer's."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from importlib import import_module
from importlib.util import find_spec
from unittest import mock

import torch
from torch import Tensor

from topkit.errors import InputError
from topkit.experiments.bench import formulas
from topkit.experiments.bench.rivals import beside
from topkit.experiments.bench.rows import Row
from topkit.experiments.bench.scale import length_of
from topkit.experiments.bench.session import Case, Session
from topkit.kernels.select_topk import select_topk

FLASHINFER_BACKEND = "FLASHINFER_TOPK_ALGO"


def select_cases(session: Session) -> Iterator[Case]:
    """Few rows and many, short and long; and one case of few keys kept."""
    s = session.scale
    for count in s.rows:
        for length in s.lengths:
            yield _selecting(session, count, length, s.k)
    yield _selecting(session, s.rows[-2], s.lengths[-1], s.small_k)


def _selecting(session: Session, count: int, length: int, k: int) -> Case:
    what = f"{count} x {length_of(length)}, k {k}"

    def measure() -> Iterator[Row]:
        moved = formulas.scores(count, length, 1)
        several = session.sets(moved.counted)
        session.require(2 * several * moved.counted)
        scores = session.drawn(several, count, length, dtype=torch.float32)
        shape = {"dtype": "float32", "batch": count, "length": length, "k": k}

        def ours(scores: Tensor) -> Tensor:
            backend = session.backend
            return select_topk(scores, k, order=None, check=False, backend=backend)

        _require_same(scores[0], ours(scores[0]), k)
        rivals: dict[str, Callable[[Tensor], object]] = {"torch.topk": lambda x: x.topk(k)}
        if session.cuda and find_spec("flashinfer"):
            rivals |= _flashinfer(k)
        yield from beside(session, "select", what, ours, rivals, list(scores), moved, shape)

    return what, measure


def _flashinfer(k: int) -> dict[str, Callable[[Tensor], object]]:
    """FlashInfer's top-k as it chooses a backend, and by two that it need not choose on a GPU."""

    def called(name: str, scores: Tensor, backend: str | None = None) -> object:
        function = getattr(import_module("flashinfer.topk"), name, None)
        if function is None:
            raise NotImplementedError(f"this FlashInfer has no {name}")
        if backend is None:
            return function(scores, k)
        with mock.patch.dict(os.environ, {FLASHINFER_BACKEND: backend}):
            return function(scores, k)

    return {
        "flashinfer.top_k": lambda x: called("top_k", x),
        "flashinfer.top_k, CUB": lambda x: called("top_k", x, "cub"),
        "flashinfer.topk_clusters_exact": lambda x: called("topk_clusters_exact", x),
    }


def _require_same(scores: Tensor, slots: Tensor, k: int) -> None:
    """Raises: InputError unless the k chosen are the best: a wrong answer has no speed."""
    best = scores.topk(k).values
    chosen = scores.gather(-1, slots.clamp(0, scores.shape[-1] - 1))
    distinct = slots.sort(-1).values.diff(dim=-1).all()
    if not distinct or not torch.equal(best, chosen.sort(-1, descending=True).values):
        raise InputError("select_topk chose other scores than torch.topk")
