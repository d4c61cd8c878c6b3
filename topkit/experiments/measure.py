"""Capture + indexers -> fidelity rows."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

import topkit
from topkit.errors import InputError
from topkit.experiments.captures import Capture, LayerTensors
from topkit.experiments.cells import Cell, parse_cells
from topkit.experiments.observe import Driver, require_inputs
from topkit.experiments.runs import claim, describe, done, part_name, with_cells
from topkit.experiments.summary import summarise
from topkit.experiments.tables import Job, digest, read_table, runner, write_part
from topkit.fidelity import METRICS
from topkit.indexers.base import Indexer, Selection
from topkit.indexers.budget import Budget
from topkit.indexers.spec import parse


@dataclass(frozen=True)
class Measured:
    """The rows, and what they say of each indexer at each budget."""

    table: pa.Table

    def summary(self, metrics: Sequence[str] = ()) -> list[dict[str, Any]]:
        """A row an indexer and budget: mean, 1st percentile, worst row and interval.

        `metrics` names further columns of METRICS whose means are wanted.
        """
        return summarise(self.table, metrics)


@dataclass(frozen=True)
class Setting:
    """What all jobs of a run have in common."""

    seed: int
    device: str
    reference: Indexer | None
    reduce: bool
    out: Path | None
    threads: int | None = None


def measure(
    capture: Capture | str | Path,
    indexers: str | Indexer | Sequence[str | Indexer],
    k: str | int | Budget | list | tuple,
    *,
    out: str | Path | None = None,
    layers: Sequence[int] | None = None,
    reference: str | Indexer | None = None,
    reduce: bool = False,
    seed: int = 0,
    device: str | None = None,
    jobs: int = 1,
    force: bool = False,
    dry_run: bool = False,
    quiet: bool = False,
    on_plan: Callable[[dict[str, Any]], object] = lambda plan: None,
) -> Measured | None:
    """Judge indexers on captured tensors against exact Top-k, in every layer, head and position.

    Each is built on the prefix and appended to as decoding would. k in tokens, or per cent of the
    sample's length. `reference` names another indexer: rows whose recall is the overlap with its
    picks are added. `reduce` keeps one row a head in place of one a head and position. With `out`,
    a Parquet part a sample and layer stands under out/fidelity, and a rerun computes what is missing.
    `on_plan` is given what is going to be done.
    Returns: the rows, or None for dry_run.
    Raises: InputError for bad input, for NaN (layer and head named), for a folder of another run.
    """
    capture = capture if isinstance(capture, Capture) else Capture.open(capture)
    cells = parse_cells(indexers, k, dense=False)
    setting = _setting(out, reference, reduce, seed, device, jobs)
    chosen = _layers(capture, layers)
    places = [(sample, layer) for sample in capture.samples for layer in chosen]
    # Before the folder is taken: a run that cannot start leaves nothing behind.
    _require_inputs(cells, setting, capture.load(*places[0]))
    identity = {
        "capture": capture.fingerprint,
        "seed": seed,
        "device": torch.device(setting.device).type,
        "reference": "" if setting.reference is None else repr(setting.reference),
        "reduce": reduce,
        "topkit": topkit.__version__,
    }
    console = Console(stderr=True, quiet=quiet, highlight=False, soft_wrap=True)
    held = nullcontext()
    if setting.out is not None:
        held = claim(setting.out, identity, ["fidelity"], force=force, dry=dry_run)
    with held:
        there = set() if setting.out is None or force else set(done(setting.out / "fidelity"))
        work = []
        for sample, layer in places:
            name = digest({**identity, "sample": sample, "layer": layer})
            left = tuple(c for c in cells if (name, *c.columns.values()) not in there)
            if left:
                work.append(Job({"job": name}, (setting, capture, sample, layer, left, name)))
        rows = _announce(console, capture, places, cells, work, reduce)
        plan = {"jobs": len(places), "done": len(places) - len(work), "rows": rows}
        on_plan({"out": out and str(out), "cells": [c.columns for c in cells], **plan})
        if dry_run:
            return None
        if setting.out is not None:
            described = {"layers": chosen, "cells": [c.columns for c in cells]}
            describe(setting.out, identity, capture=capture.manifest.get("origin", {}), **described)
        results = runner(jobs)(measure_layer, work)
        tables = [
            t for t in track(results, "measuring", len(work), console=console, disable=quiet) if t
        ]
        if setting.out is not None:
            tables = [read_table(setting.out / "fidelity")]
    order = [(n, "ascending") for n in ("indexer", "budget", "sample", "layer", "level", "head")]
    return Measured(pa.concat_tables(tables, promote_options="permissive").sort_by(order))


def _setting(
    out: str | Path | None,
    reference: str | Indexer | None,
    reduce: bool,
    seed: int,
    device: str | None,
    jobs: int,
) -> Setting:
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise InputError(f"device {device} was asked for, and torch finds no GPU; use --device cpu")
    runner(jobs)  # refuses a number of workers that makes no sense
    return Setting(
        seed,
        device,
        None if reference is None else parse(reference),
        reduce,
        None if out is None else Path(out),
        None if jobs == 1 else max(1, (os.cpu_count() or 1) // jobs),
    )


def _layers(capture: Capture, layers: Sequence[int] | None) -> list[int]:
    absent = sorted(set(layers or ()) - set(capture.layers))
    if absent:
        raise InputError(f"the capture has no layer {absent}; it has {capture.layers}")
    return sorted(set(layers)) if layers else capture.layers


def _require_inputs(cells: Sequence[Cell], setting: Setting, tensors: LayerTensors) -> None:
    for recipe in {*(cell.indexer for cell in cells), setting.reference}:
        if recipe is not None:
            require_inputs(recipe, tensors)


def _announce(
    console: Console, capture: Capture, places: list, cells: list[Cell], work: list, reduce: bool
) -> int:
    """Say what is to be done; gives the rows that there will be."""
    heads = capture.load(*places[0]).queries.shape[1]
    asked = {one["sample"]: len(one["positions"]) for one in capture.manifest["samples"]}
    rows = sum(1 if reduce else asked[sample] for sample, _ in places) * len(cells) * heads
    console.print(
        f"{len(places)} layers of samples, {len(cells)} cells: {rows:,} rows at the level of heads; "
        f"{len(places) - len(work)} of {len(places)} jobs done"
    )
    return rows


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
    _require_inputs(cells, setting, tensors)
    ks = {cell: cell.k(context) or 0 for cell in cells}
    driver = Driver(tensors, max(ks.values()), setting.seed, torch.device(setting.device))
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
