"""Fidelity rows summarised: how much memory a process holds at most, and how long it takes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa

from topkit.experiments.bench.rows import OURS, Row
from topkit.experiments.bench.session import Case, Session
from topkit.experiments.bench.truth import resident
from topkit.experiments.evaluate.condensed import condensed
from topkit.experiments.measure.measured import Measured
from topkit.experiments.runs.dictionaries import encoded
from topkit.experiments.runs.fidelity_rows import TABLES
from topkit.experiments.runs.parts import paths_of, write_part
from topkit.experiments.runs.run_file import describe

# Rows of a part, as those of one layer of a sample, or of one haystack.
PART = 200_000
CELLS, HEADS, LENGTH = 20, 32, 4096
# A number of a row is one of so many.
VALUES = 4096


def summary_cases(session: Session) -> Iterator[Case]:
    """The summary of `measure`, and the tables that a report reads, both of rows on disk."""
    count = session.scale.summed
    for name, (_, work) in KINDS.items():
        what = f"{name}, {count:,} rows"

        def measure(name: str = name, what: str = what, work: Work = work) -> Iterator[Row]:
            with TemporaryDirectory() as folder:
                write(Path(folder), name, count)
                seconds, peak = alone(_watched, work, Path(folder))
            yield session.row("summary", f"{what}, memory", OURS, [peak / 1e9], unit="GB")
            yield session.row("summary", what, OURS, [seconds], unit="s")

        yield what, measure


def alone(call: Callable[..., Any], *arguments: Any) -> Any:
    """A call in a process of its own, whose memory nothing else has touched."""
    with get_context("spawn").Pool(1) as pool:
        return pool.apply(call, arguments)


def _watched(work: Work, folder: Path) -> tuple[float, int]:
    """Seconds, and the most bytes that the process has held, torch's code and all."""
    begin = time.perf_counter()
    work(folder)
    return time.perf_counter() - begin, resident("VmHWM")


def write(folder: Path, name: str, count: int) -> None:
    """A run of so many rows of fidelity, its parts as `measure` or `evaluate` leaves them."""
    form, _ = KINDS[name]
    run, schema = describe(folder, {}), TABLES[form]
    g = np.random.default_rng(0)
    per = min(PART, count)
    labels = [f'quantized(dtype="int4", center={n})' for n in range(CELLS)]
    for part in range(count // per):
        columns = {
            field.name: pa.array(g.random(VALUES)[g.integers(VALUES, size=per)])
            for field in schema
            if field.type == pa.float64()
        }
        cell = np.arange(per) * CELLS // per
        columns |= {f.name: pa.array(np.full(per, part // 30)) for f in schema if f.type == "int64"}
        columns |= {
            "layer": pa.array(np.full(per, part % 30)),
            "head": pa.array(np.arange(per) % HEADS),
            "trivial": pa.array(np.zeros(per, dtype=bool)),
            "shadow": pa.array(np.zeros(per, dtype=bool)),
            "indexer": pa.DictionaryArray.from_arrays(pa.array(cell, pa.int32()), labels),
            "level": _every("head", per),
            "reference": _every("head", per),
            "budget": _every("2048", per),
            "steps": _every("answer", per),
            "task": _every("niah-single", per),
            "sparse_from": _every("question", per),
            # A part is a haystack, a question of it for each layer that stands there.
            "haystack": pa.array(np.full(per, part)),
            "length": pa.array(np.full(per, LENGTH)),
        }
        rows = encoded(pa.table({name: columns[name] for name in schema.names}))
        write_part(folder / "fidelity", f"part-{part:05}", rows, run=run)
        if form == "evaluate":
            words = {"wording": "code", "family": "held-out", "score": 1.0, "nll": 1.0, "kl": 0.0}
            place = {"task": "niah-single", "sparse_from": "question", "length": LENGTH}
            answers = [
                {**place, **words, "haystack": part, "indexer": label, "budget": "2048"}
                for label in labels
            ]
            table = pa.Table.from_pylist(answers)
            write_part(folder / "accuracy", f"part-{part:05}", table, run=run)


def _every(text: str, count: int) -> pa.Array:
    return pa.DictionaryArray.from_arrays(pa.array(np.zeros(count), pa.int32()), [text])


def _measured(folder: Path) -> None:
    Measured("measure", paths_of(folder / "fidelity")).summary()


def _condensed(folder: Path) -> None:
    condensed(folder)


Work = Callable[[Path], None]
# What is summarised: its table's name, and how.
KINDS: dict[str, tuple[str, Work]] = {
    "measure": ("measure", _measured),
    "report": ("evaluate", _condensed),
}
