"""`topkit bench`: what was measured is shown and written, and held against an older run."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import typer

from topkit.cli import summary
from topkit.cli.screen import show
from topkit.errors import GateFailed
from topkit.experiments.bench import compare
from topkit.experiments.bench.rows import Row, machine, read_rows, shown, write_rows

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
    from topkit.experiments.bench import cpu as bench

    before = _read(old, bench.processor)
    rows = bench.run_benches(
        names,
        tiny=tiny,
        repeats=repeats,
        report=lambda row: typer.echo(row["what"], err=True),
    )
    if not tiny:
        bench.write_rows(out or Path("benchmarks/results/cpu.csv"), rows)
    _tell(rows, summary.speed(rows), before, as_json)


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

    from topkit.experiments.bench.run import default_path, errors, run_speeds

    before = _read(old, lambda: machine(torch.device(device))["device"])
    rows = run_speeds(
        names,
        device=device,
        tiny=tiny,
        layers=layers,
        report=_report,
        save=lambda rows: None if tiny else write_rows(out or default_path(device), rows),
    )
    _tell(rows, summary.gpu(rows), before, as_json, errors(rows))


def _report(row: Row) -> None:
    said = row["error"] or row["note"] if row["median"] is None else shown(row["median"])
    unit = row["unit"] or ""
    told = f"{row['bench']}: {row['what']}, {row['implementation']}: {said} {unit}"
    typer.echo(told.rstrip(), err=True)


def _read(old: Path | None, device: Callable[[], str]) -> Old:
    """The old rows, refused before anything is measured where they are of another device."""
    if old is None:
        return None
    before = read_rows(old)
    compare.require_device(before, device())
    return before


def _tell(
    rows: Sequence[Row],
    table: Sequence[Mapping[str, Any]],
    old: Old,
    as_json: bool,
    failed: Sequence[str] = (),
) -> None:
    """Show what was measured, what failed, and how it stands beside the old rows.

    Raises: GateFailed where a row failed, where something is slower by more than both spreads or could
    not be timed any more, and where there is nothing to compare.
    """
    found = [] if old is None else compare.compared(old, rows)
    if as_json:
        typer.echo(json.dumps(rows if old is None else {"rows": rows, "compared": found}, indent=1))
    else:
        show(table, False)
        if found:
            show([{name: shown(value) for name, value in row.items()} for row in found], False)
    for line in failed:
        typer.echo(line, err=True)
    wrong = []
    if failed:
        wrong.append(f"{len(failed)} of {len(rows)} rows could not be measured; see above")
    if old is not None and not compare.shared(found):
        wrong.append("nothing to compare: no benchmark of this run has a time in the old rows")
    if worse := compare.regressions(found):
        wrong.append(
            f"{len(worse)} of {len(found)} rows are slower by more than both spreads, or were not timed"
        )
    if wrong:
        raise GateFailed("; ".join(wrong))
