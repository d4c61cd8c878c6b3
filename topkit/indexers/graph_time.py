# pyright: strict
"""How long FAISS takes to link keys into a graph, said before it begins."""

from __future__ import annotations

import math

import torch

from topkit.errors import InputError
from topkit.grammar import short
from topkit.indexers.base import Indexer

# CPU seconds that a key costs for each doubling of the keys, candidate and dimension, at M = 16: `build` in
# benchmarks/results/cpu.csv, of normal keys, which take longest. A key costs BESIDE dimensions' time besides.
RATE, BESIDE, LINKS = 7e-10, 64, 16


def seconds(keys: int, length: int, width: int, M: int, candidates: int) -> float:
    """CPU seconds for so many keys of one head that join a graph, which then has `length`."""
    doublings = math.log2(max(length, 2))
    links = (M + LINKS) / (2 * LINKS)  # links are looked for as widely, and cut to M
    return RATE * keys * doublings * candidates * (width + BESIDE) * links


def require_minutes(recipe: Indexer, cpu_seconds: float, jobs: int, most: int, what: str) -> None:
    """Require that jobs, one for each thread at a time, take no more than so many minutes.

    Raises: InputError with the estimate.
    """
    threads = max(1, min(torch.get_num_threads(), jobs))
    minutes = cpu_seconds / threads / 60
    if minutes > most:
        raise InputError(
            f"{short(recipe)}: linking {what} takes about {minutes:.1f} minutes in {threads} "
            f"thread{'s' * (threads > 1)}, and {most} is allowed; give minutes={math.ceil(minutes)}, a smaller "
            "ef_construction or M, more threads, or faiss_ivf()"
        )
