"""Capture + indexers -> fidelity rows."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from rich.console import Console
from rich.progress import track

import topkit
from topkit.errors import InputError
from topkit.experiments.capture.capture import Capture
from topkit.experiments.measure.layer import Setting, measure_layer, require_all
from topkit.experiments.measure.summary import summarise
from topkit.experiments.runs.cells import Cell, parse_cells
from topkit.experiments.runs.fidelity_rows import table
from topkit.experiments.runs.folder import claim, describe, done
from topkit.experiments.runs.jobs import Job, runner
from topkit.experiments.runs.parts import digest, read_table
from topkit.indexers.base import Indexer
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
    require_all(cells, setting, capture.load(*places[0]))
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
    return Measured(table("reduced" if reduce else "measure", tables).sort_by(order))


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
