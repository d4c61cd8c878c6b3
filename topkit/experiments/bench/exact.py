"""The exact rows that selections are judged against: how long they take, in how much memory."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from topkit.experiments.bench import formulas, timing
from topkit.experiments.bench.kernels import OURS
from topkit.experiments.bench.rows import Row
from topkit.experiments.bench.session import Case, Session, length_of
from topkit.fidelity import truth


def truth_cases(session: Session) -> Iterator[Case]:
    """All query heads at several positions over the longest context, keys and values in bf16."""
    s, length = session.scale, session.scale.lengths[-1]
    what = f"{s.heads} heads x {s.truth_queries} queries x {length_of(length)}"

    def measure() -> Iterator[Row]:
        moved = formulas.dense(1, length, s.groups, s.dim)
        session.require(2 * moved.counted)
        queries = session.drawn(1, s.heads, s.truth_queries, s.dim)
        keys = session.drawn(1, s.groups, length, s.dim)
        values = session.drawn(1, s.groups, length, s.dim)

        def ours() -> object:
            return truth(queries, keys, values, s.k, scaling=s.dim**-0.5)

        ours()
        before = _allocated(session, reset=True)
        spans = timing.clocked([ours], 3, session.device)
        above = (_allocated(session) - before) / 2**30
        shape = {"dtype": "bfloat16", "batch": 1, "length": length, "k": s.k}
        milliseconds = [span / 1e3 for span in spans]
        yield session.row("truth", what, OURS, milliseconds, unit="ms", **shape)
        yield session.row("truth", "memory above the tensors", OURS, [above], unit="GiB", **shape)

    yield what, measure


def _allocated(session: Session, reset: bool = False) -> int:
    """Most bytes that torch held since the last reset; a CPU does not say."""
    if not session.cuda:
        return 0
    if reset:
        torch.cuda.reset_peak_memory_stats(session.device)
    return torch.cuda.max_memory_allocated(session.device)
