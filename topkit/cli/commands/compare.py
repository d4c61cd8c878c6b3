"""`topkit compare`: one recipe against another on a dump, and a gate on the verdict."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from topkit.cli import options as o
from topkit.cli.exports import Exports
from topkit.cli.progress import carry_out
from topkit.cli.values import parse_numbers


def compare(
    dump: Annotated[
        Path,
        typer.Argument(
            metavar="DUMP", help="A capture's folder, or a file: .safetensors, .npz, .pt."
        ),
    ],
    baseline: Annotated[
        str,
        typer.Option("--baseline", metavar="SPEC", help="The indexer that chooses what is right."),
    ],
    candidate: Annotated[
        str, typer.Option("--candidate", metavar="SPEC", help="The indexer that is judged.")
    ],
    budget: Annotated[str, typer.Option("-k", help="Keys kept, in tokens or per cent: 2048, 1%.")],
    rerun: Annotated[
        Path | None,
        typer.Argument(
            metavar="RERUN",
            help="A second dump of the same tokens, which shows what the baseline itself changes.",
        ),
    ] = None,
    margin: Annotated[
        str,
        typer.Option(
            "--margin", help="The mean loss that is still safe: of recall, of mass, or of both."
        ),
    ] = "recall=0.01,mass=0.002",
    layers: Annotated[str, typer.Option("--layers", help="all, or numbers: 0,3,5.")] = "all",
    layout: o.Layout = None,
    scaling: o.Scaling = None,
    seed: o.Seed = 0,
    device: o.Device = None,
    jobs: o.MaybeJobs = None,
    runner: o.Runner = None,
    dry_run: o.DryRun = False,
    csv: o.Csv = None,
    latex: o.Latex = None,
    html: o.Html = None,
    as_json: o.Json = False,
    config: o.Config = None,
) -> None:
    """Judge a candidate by a baseline's own selection: exit 0 safe, 1 unsafe, 3 undecided."""
    from topkit.experiments.compare.compare import compare as comparing

    exports = Exports(csv, latex, as_json)
    plan = comparing.plan(
        dump,
        rerun,
        baseline=baseline,
        candidate=candidate,
        k=budget,
        margin=margin,
        layers=None if layers == "all" else parse_numbers(layers),
        seed=seed,
        device=device,
        jobs=jobs,
        runner=runner,
        layout=layout,
        scaling=scaling,
    )
    comparison = carry_out(plan, dry_run, as_json)
    if comparison is None:
        return
    summary = comparison.summary()
    if exports.wanted:
        from topkit.cli.verdict import rows_of

        rows = rows_of(summary)
        exports.write(summary, rows, rows_of(summary, digits=4), summary["sentence"])
    if not exports.printed:
        from topkit.cli.verdict import show_comparison

        show_comparison(summary)
    if html is not None:
        from topkit import __version__
        from topkit.experiments.study.any_report import write_page
        from topkit.experiments.study.compare_page import compare_page

        places = [("dump", dump), *([("baseline's rerun", rerun)] if rerun else [])]
        facts = [(name, f"`{place}`") for name, place in places]
        write_page(
            compare_page(summary, [*facts, ("seed", str(seed)), ("topkit", __version__)]), html
        )
    comparison.require()
