# pyright: strict, reportUnknownMemberType=false
"""FAISS in the threads of a pool, one head a thread; the process's own setting stays."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from typing import Any, TypeVar

import torch

# Multiplications a thread from which a search, or an add, is worth handing over.
WORTH = 1 << 21

Job = TypeVar("Job")
Done = TypeVar("Done")


@contextmanager
def one_thread(faiss: Any) -> Generator[None]:
    """FAISS uses one thread in here: the search of one head is too small to be split."""
    before = faiss.omp_get_max_threads()
    if before == 1:
        yield
        return
    faiss.omp_set_num_threads(1)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)


def each(
    faiss: Any, do: Callable[[Job], Done], jobs: Sequence[Job], multiplications: float
) -> list[Done]:
    """The results of `do` for all jobs, in as many threads as torch uses where the work is worth it.

    The caller's thread is one of them: to wake another takes as long as to link a key into a graph.
    """
    threads = min(torch.get_num_threads(), len(jobs))
    if threads < 2 or multiplications < WORTH * threads:
        with one_thread(faiss):
            return [do(job) for job in jobs]
    parts = [range(first, len(jobs), threads) for first in range(threads)]
    done: list[Any] = [None] * len(jobs)

    def turn(part: range) -> None:
        for n in part:
            done[n] = do(jobs[n])

    others = [_pool(os.getpid()).submit(turn, part) for part in parts[1:]]
    with one_thread(faiss):
        turn(parts[0])
    for future in others:
        future.result()
    return done


@cache
def _pool(process: int) -> ThreadPoolExecutor:
    """The pool of a process: a forked one does not inherit its parent's threads."""
    from topkit.indexers.faiss_base import import_faiss

    alone = import_faiss().omp_set_num_threads
    return ThreadPoolExecutor(os.cpu_count(), f"faiss-{process}", initializer=alone, initargs=(1,))
