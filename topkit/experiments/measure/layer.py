"""One job: the fidelity rows of one layer of one sample."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import torch

from topkit.experiments.capture.capture import Capture, LayerTensors
from topkit.experiments.measure.replay import Replay, require_inputs
from topkit.experiments.runs.cells import Cell
from topkit.experiments.runs.fidelity_rows import rows, table
from topkit.experiments.runs.folder import part_name, with_cells
from topkit.experiments.runs.judged import COSTS
from topkit.experiments.runs.parts import write_part
from topkit.fidelity import METRICS
from topkit.indexers.base import Indexer, Selection


@dataclass(frozen=True)
class Setting:
    """What all jobs of a run have in common."""

    seed: int
    device: str
    reference: Indexer | None
    reduce: bool
    out: Path | None
    threads: int | None = None


def require_all(cells: Sequence[Cell], setting: Setting, tensors: LayerTensors) -> None:
    for recipe in {*(cell.indexer for cell in cells), setting.reference}:
        if recipe is not None:
            require_inputs(recipe, tensors)


def measure_layer(
    setting: Setting, capture: Capture, sample: int, layer: int, cells: tuple[Cell, ...], name: str
) -> pa.Table | None:
    """The rows of one layer of one sample; with a folder, written there and not returned."""
    if setting.threads is not None:
        torch.set_num_threads(setting.threads)
    tensors = capture.load(sample, layer)
    context = tensors.keys.shape[2]
    recipes = {cell.indexer: [] for cell in cells if cell.indexer is not None}
    for cell in cells:
        if cell.indexer is not None:
            recipes[cell.indexer].append(cell)
    require_all(cells, setting, tensors)
    ks = {cell: cell.k(context) or 0 for cell in cells}
    driver = Replay(tensors, max(ks.values()), setting.seed, torch.device(setting.device))
    others: dict[int, Selection] = {}
    if setting.reference is not None:
        others, _ = driver.select(setting.reference, sorted(set(ks.values())))
    parts: list[pa.Table] = []
    for recipe, its in recipes.items():
        selections, held = driver.select(recipe, sorted({ks[cell] for cell in its}))
        for cell in its:
            k = ks[cell]
            places = {
                "sample": sample,
                "layer": layer,
                "position": tensors.positions,
                **cell.columns,
                "k": k,
                "index_bytes": held,
            }
            judged = driver.exact.judged(selections[k], k)
            if setting.reference is not None:
                name = repr(setting.reference)
                judged.append(driver.exact.overlap(selections[k], k, others[k], name))
            parts += [rows(one, places) for one in judged]
    made = table("measure", parts)
    made = reduced(made) if setting.reduce else made
    if setting.out is None:
        return made
    write_part(setting.out / "fidelity", part_name(name, cells), with_cells(made, cells))
    return None


def reduced(fidelity: pa.Table) -> pa.Table:
    """One row a head and cell: means over positions, and the lowest recall and mass."""
    means = ("visible", *METRICS, *COSTS)
    apart = [*((name, "mean") for name in means), ("recall", "min"), ("mass", "min")]
    keys = [name for name in fidelity.column_names if name not in (*means, "position")]
    grouped = fidelity.group_by(keys).aggregate([*apart, ([], "count_all")])
    names = {f"{name}_mean": name for name in means} | {"count_all": "rows"}
    return table(
        "reduced", [grouped.rename_columns([names.get(n, n) for n in grouped.column_names])]
    )
