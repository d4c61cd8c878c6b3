"""`topkit bench`: what was measured is shown and written, and compared with an older run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import typer

from topkit.cli.screen import show
from topkit.errors import GateFailed, InputError
from topkit.experiments.bench import compare
from topkit.experiments.bench.machine import machine, other_triton
from topkit.experiments.bench.rows import Row, read_rows, rows_of_others, shown, write_rows
from topkit.experiments.bench.table import table


def bench(
    names: Sequence[str],
    device: str | None,
    out: Path | None,
    old: Path | None,
    tiny: bool,
    repeats: int | None,
    layers: int | None,
    as_json: bool,
) -> None:
    """Run benchmarks; rows are written as they come, beside those of others, and failures are listed at the end.

    Raises: GateFailed where a row failed, where something is slower by more than both spreads or could
    not be timed any more, and where there is nothing to compare.
    """
    import torch

    from topkit.experiments.bench.run import BENCHES, default_path, errors, run_benches

    if tiny and out is not None:
        raise InputError("--tiny writes nothing; leave out --out, or --tiny")
    where = device or "cpu"
    before = None if old is None else read_rows(old)
    here = machine(torch.device(where))
    if before is not None:
        compare.require_device(before, here["device"])
    if torch.device(where).type == "cuda" and (note := other_triton(here["triton"])):
        typer.echo(note, err=True)
    to = out or default_path(where)
    others = [] if tiny else rows_of_others(to, names)

    def save(rows: list[Row]) -> None:
        if not tiny:
            order = {name: place for place, name in enumerate(BENCHES)}
            every = sorted([*others, *rows], key=lambda row: order.get(row["bench"], len(order)))
            write_rows(to, every)

    rows = run_benches(
        names,
        device=where,
        tiny=tiny,
        repeats=repeats,
        layers=layers,
        report=_report,
        save=save,
    )
    pairs = [] if before is None else compare.compared(before, rows)
    if as_json:
        typer.echo(
            json.dumps(rows if before is None else {"rows": rows, "compared": pairs}, indent=1)
        )
    else:
        show(table(rows), False)
        if pairs:
            show([{name: shown(value) for name, value in pair.items()} for pair in pairs], False)
    failed = errors(rows)
    for line in failed:
        typer.echo(line, err=True)
    _require_well(rows, failed, None if before is None else pairs)


def _report(row: Row) -> None:
    result = row["error"] or row["note"] if row["median"] is None else shown(row["median"])
    line = f"{row['bench']}: {row['what']}, {row['implementation']}: {result} {row['unit'] or ''}"
    typer.echo(line.rstrip(), err=True)


def _require_well(
    rows: Sequence[Row], failed: Sequence[str], pairs: Sequence[compare.Pair] | None
) -> None:
    wrong = []
    if failed:
        wrong.append(f"{len(failed)} of {len(rows)} rows could not be measured; see above")
    if pairs is not None and not compare.shared(pairs):
        wrong.append("nothing to compare: no benchmark of this run has a time in the old rows")
    if pairs and (worse := compare.regressions(pairs)):
        wrong.append(
            f"{len(worse)} of {len(pairs)} rows are slower by more than both spreads, or were not timed"
        )
    if wrong:
        raise GateFailed("; ".join(wrong))
