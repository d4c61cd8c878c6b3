"""One job: the fidelity rows of one layer of one sample."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch

from topkit.experiments.capture.capture import Capture, LayerTensors
from topkit.experiments.measure.replay import Replay, require_inputs
from topkit.experiments.runs.cell_parts import part_name, with_cells, write_rows
from topkit.experiments.runs.cells import Cell
from topkit.experiments.runs.fidelity_rows import rows, table
from topkit.experiments.runs.heap import freed_memory_kept
from topkit.experiments.runs.judged import COSTS
from topkit.fidelity import METRICS
from topkit.indexers.base import Indexer, Selection
from topkit.indexers.noise import seed_of


@dataclass(frozen=True)
class Setting:
    """What all jobs of a run have in common."""

    seed: int
    device: str
    reference: Indexer | None
    reduce: bool
    out: Path | None
    threads: int | None = None
    # The id of the run that the rows are of; none where they go into no folder.
    run: str = ""


def recipes_of(cells: Sequence[Cell], setting: Setting) -> list[Indexer]:
    """The recipes that are asked, the reference too."""
    recipes = dict.fromkeys((*(cell.indexer for cell in cells), setting.reference))
    return [recipe for recipe in recipes if recipe is not None]


def require_all(cells: Sequence[Cell], setting: Setting, tensors: LayerTensors) -> None:
    for recipe in recipes_of(cells, setting):
        require_inputs(recipe, tensors)


@freed_memory_kept()
def measure_layer(
    setting: Setting, capture: Capture, sample: int, layer: int, cells: tuple[Cell, ...], name: str
) -> pa.Table | None:
    """The rows of one layer of one sample; with a folder, written there and not returned."""
    if setting.threads is not None:
        torch.set_num_threads(setting.threads)
    tensors = capture.load(sample, layer)
    require_all(cells, setting, tensors)
    context = tensors.keys.shape[2]
    ks = {cell: cell.k(context) or 0 for cell in cells}
    seed = seed_of(setting.seed, sample)
    load = partial(capture.load, sample)
    replay = Replay(tensors, max(ks.values()), seed, torch.device(setting.device), load)
    places = {"sample": sample, "layer": layer, "position": tensors.positions}
    made = table("measure", list(_judged(replay, ks, setting.reference, places)))
    if setting.reduce:
        made = reduced(made)
    if setting.out is None:
        return made
    part = part_name(name, cells)
    recipes = recipes_of(cells, setting)
    write_rows(setting.out, setting.run, "fidelity", part, with_cells(made, cells), recipes)
    return None


def _judged(
    replay: Replay, ks: Mapping[Cell, int], reference: Indexer | None, places: Mapping[str, Any]
) -> Iterator[pa.Table]:
    """The rows of every cell: against the exact Top-k, and against the reference where there is one."""
    others: dict[int, Selection] = {}
    if reference is not None:
        others, _ = replay.select(reference, sorted(set(ks.values())))
    recipes = dict.fromkeys(cell.indexer for cell in ks if cell.indexer is not None)
    for recipe in recipes:
        cells = [cell for cell in ks if cell.indexer == recipe]
        selections, index_bytes = replay.select(recipe, sorted({ks[cell] for cell in cells}))
        for cell in cells:
            k = ks[cell]
            judged = replay.exact.judged(selections[k], k, repr(recipe))
            if reference is not None:
                judged.append(replay.exact.overlap(selections[k], k, others[k], repr(reference)))
            own = {**places, **cell.columns, "k": k, "index_bytes": index_bytes[k]}
            yield from (rows(one, own) for one in judged)


def reduced(fidelity: pa.Table) -> pa.Table:
    """One row a head and cell: means over positions, and the lowest recall and mass.

    Trivial positions have a row of their own.
    """
    means = ("visible", *METRICS, *COSTS)
    wanted = [*((name, "mean") for name in means), ("recall", "min"), ("mass", "min")]
    keys = [name for name in fidelity.column_names if name not in (*means, "position")]
    grouped = fidelity.group_by(keys).aggregate([*wanted, ([], "count_all")])
    names = {f"{name}_mean": name for name in means} | {"count_all": "rows"}
    grouped = grouped.rename_columns([names.get(name, name) for name in grouped.column_names])
    return table("reduced", [grouped])
