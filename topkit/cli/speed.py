"""`topkit bench`: what was measured is shown and written, and held against an older run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import typer

from topkit.cli import summary
from topkit.cli.screen import show
from topkit.errors import GateFailed, InputError
from topkit.experiments.speed import compare
from topkit.experiments.speed.rows import Row, machine, read_rows, shown, write_rows

Old = Sequence[Mapping[str, Any]] | None


def on_cpu(
    names: Sequence[str],
    out: Path | None,
    tiny: bool,
    repeats: int | None,
    old: Path | None,
    as_json: bool,
) -> None:
    """The benchmarks of a CPU."""
    from topkit.experiments import bench

    before = None if old is None else read_rows(old)
    rows = bench.run_benches(
        names,
        tiny=tiny,
        repeats=repeats,
        report=lambda row: typer.echo(row["what"], err=True),
    )
    show(rows if as_json else summary.speed(rows), as_json)
    if not tiny:
        bench.write_rows(out or Path("benchmarks/results/cpu.csv"), rows)
    _hold(before, rows)


def on_gpu(
    names: Sequence[str],
    device: str,
    out: Path | None,
    tiny: bool,
    layers: int,
    old: Path | None,
    as_json: bool,
) -> None:
    """The benchmarks of a GPU; rows are written as they come, and failures are told at the end."""
    import torch

    from topkit.experiments.speed.run import default_path, errors, run_speeds

    before = None if old is None else read_rows(old)
    if before is not None:
        compare.require_device(before, machine(torch.device(device))["device"])
    path = None if tiny else out or default_path(device)
    rows = run_speeds(
        names,
        device=device,
        tiny=tiny,
        layers=layers,
        report=_report,
        save=lambda rows: None if path is None else write_rows(path, rows),
    )
    show(rows if as_json else summary.gpu(rows), as_json)
    failed = errors(rows)
    for line in failed:
        typer.echo(line, err=True)
    if failed:
        raise GateFailed(f"{len(failed)} of {len(rows)} rows could not be measured; see above")
    _hold(before, rows)


def _report(row: Row) -> None:
    said = row["error"] or row["note"] if row["median"] is None else shown(row["median"])
    unit = row["unit"] or ""
    told = f"{row['bench']}: {row['what']}, {row['implementation']}: {said} {unit}"
    typer.echo(told.rstrip(), err=True)


def _hold(old: Old, rows: Sequence[Row]) -> None:
    """Raises: GateFailed where something has become slower by more than both spreads."""
    if old is None:
        return
    found = compare.compared(old, rows)
    if not found:
        raise InputError("nothing to compare: the old rows are of another device")
    told = [{name: shown(value) for name, value in row.items()} for row in found]
    show(told, False)
    slower = compare.regressions(found)
    if slower:
        raise GateFailed(f"{len(slower)} of {len(found)} rows are slower by more than both spreads")
