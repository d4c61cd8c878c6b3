# pyright: strict
"""FAISS's threads: one for each of a pool's, over heads, and the process's own given back."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from typing import Any, TypeVar

import torch

# Multiplications from which a search, or an add, is worth a thread's hand-over.
WORTH = 1 << 21

Job = TypeVar("Job")
Done = TypeVar("Done")


@contextmanager
def one_thread(faiss: Any) -> Generator[None]:
    """Let FAISS use one thread, as one head's search is too small to share out, and then what it used before."""
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
    """What `do` gives for each job, in as many threads as torch uses where there is enough to do.

    FAISS's number of threads is a thread's own: that of the caller stays what it was.
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

    for future in [_pool(os.getpid()).submit(turn, part) for part in parts]:
        future.result()
    return done


@cache
def _pool(process: int) -> ThreadPoolExecutor:
    """Threads of this process: those of a forked one are not its own."""
    from topkit.indexers.faiss_base import import_faiss

    alone = import_faiss().omp_set_num_threads
    return ThreadPoolExecutor(os.cpu_count(), f"faiss-{process}", initializer=alone, initargs=(1,))
