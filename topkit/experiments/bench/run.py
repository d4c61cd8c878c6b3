"""The benchmarks by name, run one after the other; what fails becomes a row, and loses no other."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from topkit.errors import InputError
from topkit.experiments.bench.attention import dense_cases, gather_cases
from topkit.experiments.bench.exact import truth_cases
from topkit.experiments.bench.generate import generate_cases
from topkit.experiments.bench.kernels import (
    append_cases,
    fused_cases,
    score_cases,
    select_cases,
)
from topkit.experiments.bench.rows import Row, machine
from topkit.experiments.bench.session import Case, Scale, Session
from topkit.experiments.bench.step import step_cases
from topkit.grammar import nearest

SPEEDS: dict[str, Callable[[Session], Iterator[Case]]] = {
    "score": score_cases,
    "select": select_cases,
    "score-select": fused_cases,
    "gather": gather_cases,
    "append": append_cases,
    "dense": dense_cases,
    "step": step_cases,
    "generate": generate_cases,
    "truth": truth_cases,
}


def run_speeds(
    names: Sequence[str] = (),
    *,
    device: str = "cuda",
    tiny: bool = False,
    layers: int = 2,
    report: Callable[[Row], object] = print,
    save: Callable[[list[Row]], object] = lambda rows: None,
) -> list[Row]:
    """Run some benchmarks, or all, on one device; `save` is given all rows after each benchmark.

    Raises: InputError for an unknown name, and for a CPU unless tiny.
    """
    for name in names:
        if name not in SPEEDS:
            raise InputError(f"unknown benchmark {name!r}; {nearest(name, SPEEDS)}")
    where = torch.device(device)
    if where.type != "cuda" and not tiny:
        raise InputError("these benchmarks are of a GPU: --device cuda, or --tiny to see them run")
    scale = replace(Scale.tiny() if tiny else Scale(), extra_layers=layers)
    session = Session(where, scale, machine(where))
    rows = []
    for row in _bandwidth(session):
        rows.append(row)
        report(row)
    for name in dict.fromkeys(names) or SPEEDS:
        for row in _rows(session, name):
            rows.append(row)
            report(row)
        save(rows)
    return rows


def default_path(device: str) -> Path:
    """benchmarks/results/GPU-NAME.csv."""
    name = torch.cuda.get_device_name(torch.device(device))
    return Path("benchmarks/results") / f"{'-'.join(name.lower().split())}.csv"


def errors(rows: Sequence[Row]) -> list[str]:
    """What failed, a line each."""
    named: Any = ("bench", "what", "implementation")
    return [f"{', '.join(row[n] for n in named)}: {row['error']}" for row in rows if row["error"]]


def _bandwidth(session: Session) -> Iterator[Row]:
    copies, reads = session.bandwidths
    yield session.row("bandwidth", "copy, read and written", "torch", copies, unit="GB/s")
    yield session.row("bandwidth", "read", "torch", reads, unit="GB/s")


def _rows(session: Session, name: str) -> Iterator[Row]:
    for what, measure in SPEEDS[name](session):
        session.release()
        try:
            yield from measure()
        except Exception as error:
            yield session.failed(name, what, "topkit", error)
