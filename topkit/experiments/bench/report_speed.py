"""A report written by the console script, of a run that was made up: from its start to its end."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa

from topkit.experiments.bench.rows import OURS, Row
from topkit.experiments.bench.session import Case, Session
from topkit.experiments.runs.parts import write_part
from topkit.experiments.runs.run_file import describe
from topkit.indexers.spec import parse

LAYERS, HEADS = 30, 9
# Full attention, oracles and 22 real recipes: 30 cells.
RECIPES = (
    "exact", "random", "sign", "sign:center=True", "moba", "quest", "refine(sign())", "streaming_llm",
    *(f"degraded({kept})" for kept in (0.5, 0.6, 0.7, 0.8, 0.9)),
    *(f"quantized:dtype={dtype},center={center},hadamard={turned}"
      for dtype, center, turned in product(("int8", "int4", "int2", "fp8_e4m3"), *2 * [(True, False)])),
)  # fmt: skip


def report_cases(session: Session) -> Iterator[Case]:
    """Thirty cells, 128 haystacks, eight tasks."""
    tasks, haystacks = session.scale.reported
    what = f"30 cells, {haystacks} haystacks, {tasks} tasks"

    def measure() -> Iterator[Row]:
        with TemporaryDirectory() as folder:
            write(Path(folder), tasks, haystacks)
            begin = time.perf_counter()
            command = [sys.executable, "-m", "topkit", "report", folder]
            subprocess.run(command, check=True, capture_output=True)
            spans = [time.perf_counter() - begin]
        yield session.row("report", what, OURS, spans, unit="s")

    yield what, measure


def write(folder: Path, tasks: int, haystacks: int) -> None:
    """A run's condensed tables, of numbers that were drawn."""
    g, run = np.random.default_rng(0), describe(folder, {})
    cells = [("dense", ""), *((repr(parse(name)), "64") for name in RECIPES)]
    rows, heads = list[dict[str, Any]](), list[dict[str, Any]]()
    for task, (indexer, budget) in product(range(tasks), cells):
        setting = {"task": f"niah-single:questions={task + 1}", "length": 4096}
        cell = {**setting, "sparse_from": "question", "indexer": indexer, "budget": budget}
        level, sparse = float(g.random()), budget != ""
        for haystack in range(haystacks):
            scores = {"score": float(g.random() < level), "token_accuracy": level, "kl": 0.1}
            judged = dict.fromkeys(("recall", "own_recall", "mass"), level) if sparse else {}
            read = {"kept": 64.0, "bytes_read": 1e4 * level} if sparse else {}
            counts = {"questions": 1, "answer_tokens": 3.0, "nll": 1.0, "wording": "code"}
            rows.append({**cell, **scores, **judged, **read, **counts, "haystack": haystack})
        heads += [
            {**cell, "layer": layer, "head": head, "recall": float(g.random())}
            for layer, head in product(range(LAYERS), range(HEADS))
            if sparse
        ]
    # A column that the first row lacks is one all the same.
    for name, table in (("haystacks", rows), ("heads", heads)):
        columns = dict.fromkeys(column for row in table for column in row)
        made = pa.table({column: [row.get(column) for row in table] for column in columns})
        write_part(folder / "curve" / name, "rows", made, run=run)
