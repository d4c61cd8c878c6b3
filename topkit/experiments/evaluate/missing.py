"""What was to be evaluated into a run, and is not there: of shards that have not ended, say."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa

# Numbers of haystacks that a line names.
NAMED = 12

Place = tuple[str, int, str]  # task, length, where selectors begin


def unfinished(described: Iterable[Mapping[str, Any]], haystacks: pa.Table) -> list[str]:
    """What is missing, a line a task and length some of whose haystacks lack cells.

    described: run.json of each run; haystacks: a row a cell and haystack that there is (see
    haystack_means).
    """
    names = ("task", "length", "sparse_from", "haystack", "indexer", "budget")
    columns = [haystacks[name].to_pylist() for name in names]
    there = set(zip(*columns, strict=True))
    wanted: dict[Place, dict[tuple[Any, ...], None]] = {}
    for run in described:
        for request in run["asked"]:
            for place, cells in _wanted(request):
                wanted.setdefault(place, {}).update(dict.fromkeys(cells))
    lines = []
    for place, cells in wanted.items():
        absent = [cell for cell in cells if (*place, *cell) not in there]
        if absent:
            lines.append(_line(place, absent, list(cells)))
    return lines


def keyless(haystacks: pa.Table) -> list[str]:
    """A line that names the tasks whose fidelity says nothing of their answers' keys."""
    if "w" not in haystacks.column_names:  # of earlier versions
        return []
    there = dict[str, bool]()
    columns = [haystacks[name].to_pylist() for name in ("task", "recall", "w")]
    for task, recall, w in zip(*columns, strict=True):
        if recall is not None:
            there[task] = there.get(task, False) or w is not None
    return without_keys([task for task, known in there.items() if not known])


def without_keys(tasks: Sequence[str]) -> list[str]:
    """The line that says it, of tasks by name; none of no task."""
    if not tasks:
        return []
    named = ", ".join(dict.fromkeys(tasks))
    return [f"hit, w and ws are empty for {named}: it is not known where the answers stand."]


def _wanted(request: Mapping[str, Any]) -> Iterator[tuple[Place, list[tuple[Any, ...]]]]:
    """The haystacks and cells of each task and length of a request to `evaluate`."""
    if not {"tasks", "lengths", "samples", "cells", "sparse_from"} <= request.keys():
        return
    first = request.get("first", 0)
    for task in request["tasks"]:
        for length in request["lengths"]:
            cells = [
                (haystack, cell["indexer"], cell["budget"])
                for haystack in range(first, first + request["samples"])
                for cell in request["cells"]
            ]
            yield (task["task"], length, request["sparse_from"]), cells


def _line(place: Place, absent: Sequence[tuple[Any, ...]], every: Sequence[tuple[Any, ...]]) -> str:
    task, length, _ = place
    haystacks = list(dict.fromkeys(haystack for haystack, *_ in absent))
    named = ", ".join(map(str, haystacks[:NAMED])) + (", ..." if haystacks[NAMED:] else "")
    of = len({haystack for haystack, *_ in every})
    what = "rows" if len(absent) == len(haystacks) * len(every) // of else "cells"
    return (
        f"{task}, {length} tokens: {len(haystacks)} of {of} haystacks lack {what} ({named}); run the same "
        "command, or its shards that did not end"
    )
