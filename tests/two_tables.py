"""A part of a run's two tables, with numbers drawn at random."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from topkit.experiments.runs.parts import write_part
from topkit.experiments.runs.run_file import describe

SETTING = {"task": "t", "length": 64, "sparse_from": "question"}


def part(run: Path, name: str, seed: int, haystacks: Sequence[int] = (0,)) -> None:
    """A part of both tables: two cells of which one shares lists, two questions, three heads."""
    g = np.random.default_rng(seed)
    accuracy, fidelity = list[dict[str, Any]](), list[dict[str, Any]]()
    for haystack in haystacks:
        for question in (0, 1):
            for indexer, budget in (("dense", ""), ("sign()", "4"), ("shared(sign())", "64")):
                row: dict[str, Any] = {
                    **SETTING,
                    "haystack": haystack,
                    "indexer": indexer,
                    "budget": budget,
                }
                scores = {"score": float(g.random()), "nll": float(g.random()), "tokens": 60}
                text = {"wording": "code", "family": "trained", "rule": "all"}
                more = {"references": ["a"] * (1 + question), "said": "x" * 50}
                accuracy.append({**row, **scores, **text, **more, "question": question})
                if budget:
                    fidelity += list(judged(g, row, budget == "64"))
    # The id is the same: of one run.
    id_ = describe(run, {})
    write_part(run / "fidelity", name, pa.Table.from_pylist(fidelity), run=id_)
    write_part(run / "accuracy", name, pa.Table.from_pylist(accuracy), run=id_)


def judged(g: np.random.Generator, row: dict[str, Any], shared: bool) -> Iterator[dict[str, Any]]:
    for steps in ("question", "answer"):
        for level in ("head", "group") if shared else ("head",):
            for head in range(3):
                numbers = {"recall": float(g.random()), "mass": float(g.random()), "kept": 4.0}
                trivial = bool(g.random() < (1.0 if shared else 0.4))
                yield {
                    **row, "steps": steps, "level": level, "layer": 0, "head": head,
                    "trivial": trivial, **numbers,
                }  # fmt: skip
