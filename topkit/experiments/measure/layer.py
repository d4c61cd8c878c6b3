"""One job: the fidelity rows of one layer of one sample."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from topkit.experiments.capture.capture import Capture, LayerTensors
from topkit.experiments.measure.replay import Replay, require_inputs
from topkit.experiments.runs.cells import Cell
from topkit.experiments.runs.folder import part_name, with_cells
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
    parts = []
    for recipe, its in recipes.items():
        found, held = driver.select(recipe, sorted({ks[cell] for cell in its}))
        for cell in its:
            k = ks[cell]
            for reference, level, columns in driver.columns(found[k], k, others.get(k)):
                named = repr(setting.reference) if reference == "other" else reference
                constants = {
                    "sample": sample,
                    "layer": layer,
                    **cell.columns,
                    "k": k,
                    "reference": named,
                    "level": level,
                    "index_bytes": held,
                }
                parts.append(_table(columns, found[k], tensors.positions, constants))
    table = pa.concat_tables(parts, promote_options="permissive")
    table = reduced(table) if setting.reduce else table
    if setting.out is None:
        return table
    write_part(setting.out / "fidelity", part_name(name, cells), with_cells(table, cells))
    return None


def _table(
    columns: dict[str, Tensor], selection: Selection, positions: Tensor, constants: dict[str, Any]
) -> pa.Table:
    """One row a head and position."""
    _, heads, count = columns["recall"].shape
    made: dict[str, Any] = {
        "head": np.repeat(np.arange(heads), count),
        "position": np.tile(positions.cpu().numpy(), heads),
    }
    for cost in ("keys_scored", "bytes_read"):
        value = torch.as_tensor(getattr(selection, cost), dtype=torch.float64).cpu()
        made[cost] = value.expand(1, count).repeat(heads, 1).flatten().numpy()
    for name in ("visible", "trivial", *METRICS):
        column = columns.get(name)
        if column is None:
            made[name] = pa.nulls(heads * count, pa.float64())
        else:
            flat = column[0].flatten().cpu().numpy()
            made[name] = pa.array(flat, from_pandas=flat.dtype.kind == "f")
    made["visible"] = pa.array(columns["visible"][0].flatten().cpu().numpy().astype(np.int64))
    rows = {name: [value] * (heads * count) for name, value in constants.items()}
    table = pa.table({**rows, **made})
    # A query that sees nothing has nothing to be judged by.
    return table.filter(pc.field("visible") > 0)


def reduced(table: pa.Table) -> pa.Table:
    """One row a head and cell: means over positions, and the lowest recall and mass."""
    keys = [
        "sample", "layer", "head", "indexer", "budget", "k", "reference", "level", "trivial",
        "index_bytes",
    ]  # fmt: skip
    means = [*METRICS, "visible", "keys_scored", "bytes_read"]
    asked = [(name, "mean") for name in means] + [("recall", "min"), ("mass", "min")]
    found = table.group_by(keys).aggregate([*asked, ("visible", "count")])
    names = {f"{name}_mean": name for name in means} | {"visible_count": "rows"}
    return found.rename_columns([names.get(name, name) for name in found.column_names])
