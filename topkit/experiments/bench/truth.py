"""The exact rows that selections are judged against: how long they take, in how much memory."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from multiprocessing import get_context
from pathlib import Path

import torch
from torch import Tensor

from topkit.errors import InputError
from topkit.experiments.bench import formulas
from topkit.experiments.bench.rows import OURS, Row
from topkit.experiments.bench.scale import Scale, length_of
from topkit.experiments.bench.session import Case, Session
from topkit.fidelity import truth

# Fewer than of other benchmarks: a call takes seconds on a CPU.
TURNS = 3
# Keys that torch scores at a time.
PIECE = 1 << 16
PLAIN = "matmul + topk, by chunks"


def truth_cases(session: Session) -> Iterator[Case]:
    """All query heads at several positions over the longest context, keys and values in bf16."""
    s, length = session.scale, session.scale.lengths[-1]
    what = f"{s.heads} heads x {s.truth_queries} queries x {length_of(length)}, k {s.truth_k}"
    shape: Row = {"dtype": "bfloat16", "batch": 1, "length": length, "k": s.truth_k}

    def measure() -> Iterator[Row]:
        session.require(2 * formulas.dense(1, length, s.groups, s.dim).counted)
        ours, plain = _calls(session)
        turns = min(TURNS, s.repeats)
        yield from session.in_turns("truth", {what: ours}, PLAIN, plain, turns, "ms", **shape)
        above = _memory_of_gpu(ours, session.device) if session.cuda else _memory_of_cpu(s)
        memory = [above / 2**30]
        yield session.row("truth", "memory above the tensors", OURS, memory, unit="GiB", **shape)

    yield what, measure


def _calls(session: Session) -> tuple[Callable[[], object], Callable[[], object]]:
    s, length = session.scale, session.scale.lengths[-1]
    queries = session.drawn(1, s.heads, s.truth_queries, s.dim)
    keys, values = (session.drawn(1, s.groups, length, s.dim) for _ in range(2))

    def ours() -> object:
        return truth(queries, keys, values, s.truth_k, scaling=s.dim**-0.5)

    return ours, lambda: best_by_chunks(queries, keys, s.truth_k)


def best_by_chunks(queries: Tensor, keys: Tensor, k: int) -> Tensor:
    """The best k scores of each query [B, Hk, Hq / Hk * Tq, k], computed over pieces of the keys."""
    grouped = queries.float().unflatten(1, (keys.shape[1], -1)).flatten(2, 3)
    best = grouped.new_empty(*grouped.shape[:3], 0)
    for piece in keys.split(PIECE, 2):
        scores = grouped @ piece.float().mT
        best = torch.cat([best, scores.topk(min(k, scores.shape[-1])).values], -1)
        best = best.topk(min(k, best.shape[-1])).values
    return best


def _memory_of_gpu(call: Callable[[], object], device: torch.device) -> int:
    """Bytes that torch allocates beyond what it has."""
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.max_memory_allocated(device)
    call()
    return torch.cuda.max_memory_allocated(device) - before


def _memory_of_cpu(scale: Scale) -> int:
    """Resident bytes beyond the tensors, in a process of its own: a peak cannot be reset."""
    with get_context("spawn").Pool(1) as pool:
        return pool.apply(_peak, (scale,))


def _peak(scale: Scale) -> int:
    ours, _ = _calls(Session(torch.device("cpu"), scale))
    gc.collect()
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak until now
    ours()
    return resident("VmHWM") - before


def resident(field: str) -> int:
    """Bytes that this process holds (VmRSS), or has held at most (VmHWM)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise InputError(f"/proc/self/status does not say {field}; this benchmark needs Linux")
