"""What a law predicts of a run: from the rows of its steps to a row a cell and haystack, kept under RUN/curve/law."""

# pyright: strict, reportMissingTypeStubs=false, reportUnknownMemberType=false
# pyright: reportUnknownArgumentType=false, reportUnknownVariableType=false
# pyright: reportUnknownParameterType=false
# (pyarrow comes without types.)
from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
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
Place = tuple[int, int]


@dataclass(frozen=True)
class Reading:
    """The heads that read answers, (layer, head), and how they hold from step to step of a dense pass.

    stays: of each haystack of the split, the share of steps at which the heaviest head on the key is one of them.
    """

    heads: Sequence[Place]
    stays: Sequence[float]

    def as_json(self) -> str:
        return json.dumps({"heads": self.heads, "stays": self.stays})

    @classmethod
    def of_json(cls, text: str | bytes) -> Reading:
        held = json.loads(text)
        return cls([(layer, head) for layer, head in held["heads"]], held["stays"])


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


def reading_of(run: Path, law: Law) -> Reading:
    """The reading heads that a split's dense pass shows."""
    weights: dict[tuple[Any, ...], dict[Place, float]] = {}
    for rows in answer_steps(run):
        for row in rows.select([*_STEP, "layer", "head", "w"]).to_pylist():
            step = tuple(row[name] for name in _STEP)
            weights.setdefault(step, {})[row["layer"], row["head"]] = row["w"]
    every = dict.fromkeys(place for step in weights.values() for place in step)
    means = {
        place: float(np.mean([step[place] for step in weights.values() if place in step]))
        for place in every
    }
    heads, stays = reading_heads(means, law.heads), dict[Any, list[bool]]()
    for step, own in weights.items():
        where = step[_STEP.index("task")], step[_STEP.index("haystack")]
        stays.setdefault(where, []).append(max(own, key=lambda place: own[place]) in heads)
    return Reading(heads, [float(np.mean(own)) for _, own in sorted(stays.items())])


def law_table(run: Path, split: Path, law: Law) -> tuple[pa.Table, Reading]:
    """A row a cell and haystack that has keys to find, and the reading heads.

    law, law_shadow: the mean over questions of the expected share of what full attention scores; ws, ws_shadow:
    the mean weight behind them; missed: how many questions have a step whose key all reading heads missed, and
    missed_score: what these scored on average. Made of rows where there are any and kept beside them, else as kept.
    """
    kept = run / TABLE / "rows.parquet"
    if not any((run / "fidelity").glob("*.parquet")):
        if not kept.exists():
            raise InputError(
                f"{run} holds neither rows of fidelity nor {TABLE}: run the study again"
            )
        return _kept(kept, law)
    reading = reading_of(split, law)
    table = _table(run, reading.heads, law)
    described = run_file.read(run)
    if described is not None and "id" in described:
        about = {"law": law.sha256, "reading": reading.as_json()}
        write_rows(run, described["id"], TABLE, "rows", table.replace_schema_metadata(about))
    return table, reading


def _kept(path: Path, law: Law) -> tuple[pa.Table, Reading]:
    table = pq.read_table(path)
    about: Mapping[bytes, bytes] = table.schema.metadata or {}
    if about.get(b"law") != law.sha256.encode():
        raise InputError(f"{path} is of another law than {law.path}; run the study again")
    return table, Reading.of_json(about[b"reading"])


def _table(run: Path, heads: Sequence[Place], law: Law) -> pa.Table:
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
    return _by_haystack(sums, _answers(run), law)


def _answers(run: Path) -> dict[tuple[Any, ...], tuple[float, float]]:
    """Of how many parts each answer is scored, and its score, by cell, haystack and question."""
    found: dict[tuple[Any, ...], tuple[float, float]] = {}
    columns = [*PLACE, "question", "rule", "references", "score"]
    for rows in batches(paths_of(run / "accuracy"), columns):
        for row in rows.to_pylist():
            place = tuple(row[name] for name in (*PLACE, "question"))
            parts = float(len(row["references"]) or 1) if row["rule"] == "all" else 1.0
            found[place] = parts, row["score"]
    return found


def _by_haystack(
    steps: Mapping[tuple[Any, ...], Sequence[float]],
    answers: Mapping[tuple[Any, ...], tuple[float, float]],
    law: Law,
) -> pa.Table:
    """From steps to questions, and from these to haystacks."""
    questions: dict[tuple[Any, ...], list[float]] = {}
    for key, (total, count) in steps.items():
        *place, _, shadow = key
        questions.setdefault((*place, shadow), []).append(total / count)
    rows: dict[tuple[Any, ...], dict[str, list[float]]] = {}
    for (*place, question, shadow), weights in questions.items():
        answer = answers.get((*place, question))
        if answer is None:  # of a job that was not finished
            continue
        row, end = rows.setdefault(tuple(place), {}), "_shadow" if shadow else ""
        right = answer_chance(law.step(np.array(weights)), answer[0])
        row.setdefault(f"law{end}", []).append(right)
        row.setdefault(f"ws{end}", []).append(float(np.mean(weights)))
        if not shadow and min(weights) == 0:
            row.setdefault("missed_score", []).append(answer[1])
    columns = ("law", "ws", "law_shadow", "ws_shadow", "missed_score")
    made = [
        {
            **dict(zip(PLACE, place, strict=True)),
            **{name: _mean(row.get(name)) for name in columns},
            "missed": len(row.get("missed_score", ())),
        }
        for place, row in rows.items()
    ]
    whole = dict.fromkeys(("length", "haystack", "missed"), pa.int64())
    types = {**whole, **dict.fromkeys(columns, pa.float64())}
    schema = pa.schema([(name, types.get(name, pa.string())) for name in (*PLACE, *columns, "missed")])  # fmt: skip
    return pa.Table.from_pylist(made, schema).sort_by([(name, "ascending") for name in PLACE])


def _mean(values: Sequence[float] | None) -> float | None:
    return None if values is None else float(np.mean(values))
