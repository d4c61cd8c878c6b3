"""What a study asks beside its curves, a section of the report each."""

# pyright: strict
from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from topkit.experiments.study import exact_topk, predictors
from topkit.experiments.study.blocks import Block
from topkit.experiments.study.findings import Findings

# Keys of study.json.
PREDICT = "predict"


def sections(study: Mapping[str, Any], several: Sequence[Findings]) -> Iterator[Block]:
    """The blocks of a study's own questions, which study.json names; `several`: its curves, each at a budget."""
    curves = list({id(one.curve): one.curve for one in several}.values())
    margin = study.get("aims", {}).get("margin")
    if margin is not None:
        yield from exact_topk.blocks(curves, float(margin))
    if study.get(PREDICT):
        yield from predictors.blocks(several)
