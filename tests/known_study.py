"""A study whose truth is known, as the tables of a run; several tests report it."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from topkit.experiments.runs.cells import DENSE, Cell
from topkit.experiments.runs.parts import write_part
from topkit.experiments.runs.run_file import describe
from topkit.indexers.budget import Budget
from topkit.indexers.spec import parse

# A study whose truth is known: accuracy is a function of mass, and of nothing else.
REAL = {  # spec: recall, mass, bytes a step
    "quantized(dtype='fp8_e4m3', hadamard=False, scale='float')": (0.97, 0.93, 40960),
    "quantized(dtype='int8', hadamard=False, scale='float')": (0.985, 0.935, 43008),
    "quantized(dtype='int4', hadamard=False, scale='float')": (0.80, 0.90, 24576),
    "quantized(dtype='int2', hadamard=False, scale='float')": (0.50, 0.74, 14336),
    "sign()": (0.42, 0.70, 8192),
    "quest(page_size=16)": (0.36, 0.62, 8192),
    "streaming_llm(sink=4, window=64)": (0.12, 0.30, 0),
    "keep(sign(), sink=4, window=16)": (0.40, 0.79, 8192),
    "refine(sign(), factor=4)": (0.84, 0.91, 16384),
    "shared(quantized(dtype='int8', hadamard=False, scale='float'), per='group', how='sum')": (
        0.66,
        0.80,
        43008,
    ),
    "faiss_ivf(nlist=64, nprobe=8)": (0.70, 0.83, 90112),
    "top_p(sign(), mass=0.9)": (0.41, 0.69, 8192),
    "random()": (0.01, 0.04, 0),
}
MANNERS = {"": 0.0, "miss='boundary', fill='next', ": 0.45, "persist='stream', per='layer', ": -0.1}


def truth(mass: float) -> float:
    """Accuracy that a cell of that mass has."""
    return float(1 / (1 + np.exp(-12 * (mass - 0.62)))) * 0.98


def cells() -> dict[tuple[str, str], tuple[float, float, float]]:
    """(indexer, budget) to recall, mass and bytes."""
    found: dict[tuple[str, str], tuple[float, float, float]] = {
        (DENSE, ""): (np.nan, np.nan, np.nan)
    }
    for k in (4, 8, 16, 32, 64):
        found["exact()", str(k)] = (1.0, 0.95 - 1.3 / k, 262144)
    for manner, help_ in MANNERS.items():
        for p in (0.2, 0.4, 0.6, 0.8, 0.9):
            mass = 0.91 * (p + (1 - p) * max(help_, 0)) * (1 + min(help_, 0))
            words = manner or "miss='uniform', fill='uniform', "
            found[f"degraded({p}, {words.rstrip(', ')})", "32"] = (p, mass, 262144)
    return found | {(spec, "32"): values for spec, values in REAL.items()}


def tables(
    haystacks: int = 24, questions: int = 4, seed: int = 0, task: str = "niah-multikey"
) -> tuple[pa.Table, pa.Table]:
    """The condensed tables: haystacks and heads."""
    rng = np.random.default_rng(seed)
    ease = rng.random((haystacks, questions))
    rows, heads = [], []
    for (indexer, budget), (recall, mass, read) in cells().items():
        right = 1.0 if indexer == DENSE else truth(mass)
        setting = {"task": task, "length": 4096, "sparse_from": "question"}
        cell = {"indexer": indexer, "budget": budget, "k": int(budget or 0)}
        for haystack in range(haystacks):
            own = rng.random(questions)
            won = np.where(rng.random(questions) < 0.5, own, ease[haystack]) < right
            rows.append(
                setting
                | cell
                | {"haystack": haystack, "questions": questions, "answer_tokens": 6.0}
                | {"wording": "code", "family": "trained"}
                | {"exact_match": float(won.mean()), "token_accuracy": float(won.mean())}
                | {
                    "recall": recall + rng.normal(0, 0.004),
                    "mass": mass + rng.normal(0, 0.004),
                    "output_error": 1 - mass,
                    "kept": 32.0,
                    "bytes_read": read,
                    "index_bytes": read,
                    "nll": 1.0,
                    "kl": 0.1,
                }
            )
        for layer in range(8) if indexer != DENSE else ():
            for head in range(6):
                seen = float(np.clip(recall + rng.normal(0, 0.08), 0, 1))
                heads.append(setting | cell | {"layer": layer, "head": head, "recall": seen})
    return pa.Table.from_pylist(rows), pa.Table.from_pylist(heads)


WHOLE = "quantized(dtype='int8', hadamard=False, scale='float')"


def cell(spec):
    return Cell() if spec == DENSE else Cell(parse(spec), Budget(32))


def keep(run, table, rows):
    """A table of a run in one part; the run has no identity."""
    run.mkdir(parents=True, exist_ok=True)
    write_part(run / table, "rows", rows, run=describe(run, {}))


def write(run, haystacks, heads):
    keep(run, "curve/haystacks", haystacks)
    keep(run, "curve/heads", heads)
    return run


def with_accuracy(table, change):
    """The table with each (cell, haystack)'s accuracy given by `change(rows)`."""
    rows = table.to_pylist()
    for row, rate in zip(rows, change(rows), strict=True):
        row["exact_match"] = rate
    return pa.Table.from_pylist(rows)
