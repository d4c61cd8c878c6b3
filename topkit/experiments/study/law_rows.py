"""What a law predicts of a run: from the rows of its steps to a row a cell and haystack, kept under RUN/curve/law."""

# pyright: strict, reportMissingTypeStubs=false, reportUnknownMemberType=false
# pyright: reportUnknownArgumentType=false, reportUnknownVariableType=false
# pyright: reportUnknownParameterType=false
# (pyarrow comes without types.)
from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq

from topkit.errors import InputError
from topkit.experiments.runs import run_file
from topkit.experiments.runs.cell_parts import write_rows
from topkit.experiments.runs.fidelity_rows import LABELS
from topkit.experiments.runs.parts import batches, paths_of
from topkit.experiments.study.law import Law, answer_chance, reading_heads

pc: Any = pyarrow.compute
TABLE = "curve/law"
# A cell on a haystack.
PLACE = ["task", "length", "sparse_from", "haystack", "indexer", "budget"]
_STEP = [*PLACE, "question", "position"]
_READ = [*_STEP, "layer", "head", "level", "steps", "shadow", "w", "ws"]
# The forms of a law: of the queries that answered, and of those of the unchanged model.
FORMS = ("observed", "shadow")
Heads = Sequence[tuple[int, int]]


def answer_steps(run: Path) -> Iterator[pa.Table]:
    """The rows of query heads at steps of answers whose key is known, some at a time.

    Raises: InputError for a run that recorded none.
    """
    some = False
    for rows in batches(paths_of(run / "fidelity"), _READ, LABELS):
        if {"w", "ws", "shadow"} <= set(rows.column_names):
            at = (pc.field("level") == "head") & (pc.field("steps") == "answer")
            kept = rows.filter(at & pc.field("w").is_valid())
            some = some or kept.num_rows > 0
            yield kept
    if not some:
        raise InputError(
            f"{run} has no answer's key: run it with --observe answer-rows, on a task whose answers stand in the "
            "haystack"
        )


def heads_of(run: Path, law: Law) -> list[tuple[int, int]]:
    """The reading heads that a split's dense pass shows."""
    sums: dict[tuple[int, int], tuple[float, int]] = {}
    for rows in answer_steps(run):
        table = rows.group_by(["layer", "head"]).aggregate([("w", "sum"), ("w", "count")])
        for row in table.to_pylist():
            place = row["layer"], row["head"]
            total, count = sums.get(place, (0.0, 0))
            sums[place] = total + row["w_sum"], count + row["w_count"]
    means = {place: total / count for place, (total, count) in sums.items()}
    return reading_heads(means, law.heads)


def law_table(run: Path, split: Path, law: Law) -> tuple[pa.Table, list[tuple[int, int]]]:
    """A row a cell and haystack that has keys to find, and the reading heads.

    law, law_shadow: the mean over questions of the expected share of what full attention scores; ws, ws_shadow:
    the mean weight behind them. Made of rows where there are any and kept beside them, else as kept.
    """
    kept = run / TABLE / "rows.parquet"
    if not any((run / "fidelity").glob("*.parquet")):
        if not kept.exists():
            raise InputError(
                f"{run} holds neither rows of fidelity nor {TABLE}: run the study again"
            )
        return _kept(kept, law)
    heads = heads_of(split, law)
    table = _table(run, heads, law)
    described = run_file.read(run)
    if described is not None and "id" in described:
        about = {"law": law.sha256, "heads": json.dumps(heads)}
        write_rows(run, described["id"], TABLE, "rows", table.replace_schema_metadata(about))
    return table, heads


def _kept(path: Path, law: Law) -> tuple[pa.Table, list[tuple[int, int]]]:
    table = pq.read_table(path)
    about: Mapping[bytes, bytes] = table.schema.metadata or {}
    if about.get(b"law") != law.sha256.encode():
        raise InputError(f"{path} is of another law than {law.path}; run the study again")
    return table, [(layer, head) for layer, head in json.loads(about[b"heads"])]


def _table(run: Path, heads: Heads, law: Law) -> pa.Table:
    wanted = pa.array([layer * 10_000 + head for layer, head in heads])
    sums: dict[tuple[Any, ...], list[float]] = {}
    for rows in answer_steps(run):
        numbers = pc.add(pc.multiply(rows["layer"], 10_000), rows["head"])
        read = rows.filter(pc.is_in(numbers, wanted))
        table = read.group_by([*_STEP, "shadow"]).aggregate([("ws", "sum"), ("ws", "count")])
        for row in table.to_pylist():
            step = sums.setdefault((*(row[name] for name in _STEP), bool(row["shadow"])), [0.0, 0])
            step[0] += row["ws_sum"]
            step[1] += row["ws_count"]
    return _by_haystack(sums, _parts(run), law)


def _parts(run: Path) -> dict[tuple[Any, ...], float]:
    """Of how many parts each answer is scored, by task, length, haystack and question."""
    found: dict[tuple[Any, ...], float] = {}
    columns = ["task", "length", "haystack", "question", "rule", "references"]
    for rows in batches(paths_of(run / "accuracy"), columns):
        for row in rows.to_pylist():
            place = row["task"], row["length"], row["haystack"], row["question"]
            found[place] = float(len(row["references"])) if row["rule"] == "all" else 1.0
    return found


def _by_haystack(
    steps: Mapping[tuple[Any, ...], Sequence[float]],
    parts: Mapping[tuple[Any, ...], float],
    law: Law,
) -> pa.Table:
    """From steps to questions, and from these to haystacks."""
    questions: dict[tuple[Any, ...], list[float]] = {}
    for key, (total, count) in steps.items():
        *place, _, shadow = key
        questions.setdefault((*place, shadow), []).append(total / count)
    rows: dict[tuple[Any, ...], dict[str, list[float]]] = {}
    for (*place, question, shadow), weights in questions.items():
        task, length, _, haystack, *_ = place
        right = answer_chance(law.step(np.array(weights)), parts.get((task, length, haystack, question), 1.0) or 1.0)  # fmt: skip
        row = rows.setdefault(tuple(place), {})
        end = "_shadow" if shadow else ""
        row.setdefault(f"law{end}", []).append(right)
        row.setdefault(f"ws{end}", []).append(float(np.mean(weights)))
    columns = ("law", "ws", "law_shadow", "ws_shadow")
    made = [
        {**dict(zip(PLACE, place, strict=True)), **{name: _mean(row.get(name)) for name in columns}}
        for place, row in rows.items()
    ]
    types = {"length": pa.int64(), "haystack": pa.int64(), **dict.fromkeys(columns, pa.float64())}
    schema = pa.schema([(name, types.get(name, pa.string())) for name in (*PLACE, *columns)])
    return pa.Table.from_pylist(made, schema).sort_by([(name, "ascending") for name in PLACE])


def _mean(values: Sequence[float] | None) -> float | None:
    return None if values is None else float(np.mean(values))
