"""Each kernel by itself: scoring, selecting, both in one, and what a token adds to an index."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from importlib.util import find_spec
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from topkit.errors import InputError
from topkit.experiments.bench import formulas
from topkit.experiments.bench.packed import random_asked, random_index
from topkit.experiments.bench.rows import Row
from topkit.experiments.bench.session import Case, Session, length_of
from topkit.kernels.select_topk import select_topk

OURS = "topkit"
FLASHINFER_BACKEND = "FLASHINFER_TOPK_ALGO"


def score_cases(session: Session) -> Iterator[Case]:
    """An index read and float32 scores written, pooled over each KV group."""
    short, _, long = session.scale.lengths
    for dtype in ("fp8_e4m3", "int8", "int4", "sign", "lightning"):
        length = long if dtype == "lightning" else short
        yield _scoring(session, "score", dtype, length)


def fused_cases(session: Session) -> Iterator[Case]:
    """The best k of an index, with no scores written."""
    short, _, long = session.scale.lengths
    for dtype, length in (
        ("sign", short), ("sign", long), ("int4", short), ("fp8_e4m3", short),
        ("lightning", short), ("lightning", long),
    ):  # fmt: skip
        yield _scoring(session, "score-select", dtype, length)


def _scoring(session: Session, bench: str, dtype: str, length: int) -> Case:
    s = session.scale
    what = f"{dtype}, batch {s.batch} x {length_of(length)}"

    def measure() -> Iterator[Row]:
        moved = formulas.index(dtype, s.batch, length, s.groups, s.dim)
        session.require(3 * moved.counted)
        several = session.sets(moved.counted)
        held = [random_index(session, dtype, s.batch, length) for _ in range(several)]
        asked = random_asked(session, dtype, s.batch)
        if bench == "score":
            moved += formulas.scores(s.batch, length, held[0].codes.shape[1])
            calls = [lambda one=one: one.scores(asked) for one in held]
        else:
            calls = [lambda one=one: one.select(asked, s.k) for one in held]
        shape = {"dtype": dtype, "batch": s.batch, "length": length}
        if bench == "score-select":
            shape["k"] = s.k
        yield session.row(bench, what, OURS, session.timed(calls), moved, **shape)

    return what, measure


def select_cases(session: Session) -> Iterator[Case]:
    """Exact top-k of float32 rows, beside torch's and FlashInfer's."""
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
        held = session.drawn(several, count, length, dtype=torch.float32)
        shape = {"dtype": "float32", "batch": count, "length": length, "k": k}

        def ours(scores: Tensor) -> Tensor:
            backend = session.backend
            return select_topk(scores, k, order=None, check=False, backend=backend)

        _require_same(held[0], ours(held[0]), k)
        rivals: dict[str, Callable[[Tensor], object]] = {"torch.topk": lambda x: x.topk(k)}
        if session.cuda and find_spec("flashinfer"):
            rivals |= _flashinfer(k)
        yield from beside(session, "select", what, ours, rivals, list(held), moved, shape)

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
    found = scores.gather(-1, slots.clamp(0, scores.shape[-1] - 1))
    distinct = slots.sort(-1).values.diff(dim=-1).all()
    if not distinct or not torch.equal(best, found.sort(-1, descending=True).values):
        raise InputError("select_topk chose other scores than torch.topk")


def beside(
    session: Session,
    bench: str,
    what: str,
    ours: Callable[..., object],
    rivals: Mapping[str, Callable[..., object]],
    inputs: list[Any],
    moved: formulas.Bytes,
    shape: Row,
) -> Iterator[Row]:
    """Rows of rivals and of ours on the same inputs; ours is held against the fastest of them."""
    times: dict[str, float] = {}
    for name, rival in rivals.items():

        def measure(rival: Callable[..., object] = rival) -> Row:
            spans = session.timed([lambda x=x: rival(x) for x in inputs])
            return {"spans": spans, "moved": moved, **shape}

        row = session.attempt(bench, what, name, measure)
        if row["median"] is not None:
            times[name] = row["median"]
        yield row
    fastest = min(times.items(), key=lambda one: one[1], default=None)
    spans = session.timed([lambda x=x: ours(x) for x in inputs])
    yield session.row(bench, what, OURS, spans, moved, against=fastest, **shape)


def append_cases(session: Session) -> Iterator[Case]:
    """One token's keys encoded into an index, beside the same in torch."""
    s = session.scale
    for dtype in ("sign", "int4", "fp8_e4m3"):
        what = f"{dtype}, batch {s.batch}, 1 token"

        def measure(dtype: str = dtype, what: str = what) -> Iterator[Row]:
            packed = random_index(session, dtype, s.batch, s.shortest)
            keys = session.drawn(s.batch, s.groups, 1, s.dim)
            code = formulas.index(dtype, s.batch, 1, s.groups, s.dim)
            moved = code + formulas.same(s.batch * s.groups * s.dim * formulas.ELEMENT)
            shape = {"dtype": dtype, "batch": s.batch, "length": s.shortest}
            calls = [(keys, s.shortest - 1)]
            rivals = {"torch": lambda call: packed.append_in_torch(*call)}
            yield from beside(
                session,
                "append",
                what,
                lambda call: packed.append(*call),
                rivals,
                calls,
                moved,
                shape,
            )

        yield what, measure
