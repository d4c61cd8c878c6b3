"""What a study asks beside its curves, a section of the report each."""

# pyright: strict
from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from topkit.experiments.runs import run_file
from topkit.experiments.study import exact_topk, law_report, predictors
from topkit.experiments.study.blocks import Block
from topkit.experiments.study.findings import Findings
from topkit.experiments.study.law import Law, read_law, require_unchanged
from topkit.experiments.study.law_points import Predictions, predictions
from topkit.experiments.study.reading import LAW, PREDICT, RUNS, SPLIT


def sections(
    study: Mapping[str, Any], several: Sequence[Findings], folder: Path
) -> Iterator[Block]:
    """The blocks of a study's own questions, which study.json in its folder names; `several`: its curves, each at a budget.

    Raises: InputError for a law that was changed after its run.
    """
    curves = list({id(one.curve): one.curve for one in several}.values())
    margin = study.get("aims", {}).get("margin")
    if margin is not None:
        yield from exact_topk.blocks(curves, float(margin))
    if study.get(PREDICT):
        yield from predictors.blocks(several)
    if LAW in study:
        law = read_law(study[LAW]["name"])
        require_unchanged(law, study[LAW]["sha256"], folder)
        yield from law_report.blocks(law, _predictions(study, folder, law))


def _predictions(study: Mapping[str, Any], folder: Path, law: Law) -> list[Predictions]:
    """Those of each run that has begun."""
    own = [{"model": study.get("model", "a model"), "folder": ".", SPLIT: SPLIT}]
    return [
        predictions(one["model"], folder / one["folder"], folder / one[SPLIT], law)
        for one in study.get(RUNS, own)
        if (folder / one["folder"] / run_file.NAME).exists()
    ]
