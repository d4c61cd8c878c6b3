"""The figures of a curve at one budget, drawn, saved and put into the page."""

# pyright: strict
from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from matplotlib.figure import Figure

from topkit.experiments.study.captions import CAPTIONS
from topkit.experiments.study.drawing import Entries
from topkit.experiments.study.figures import by_bytes, by_fidelity
from topkit.experiments.study.findings import Findings
from topkit.experiments.study.head_maps import by_head
from topkit.experiments.study.page import save_figure
from topkit.experiments.study.pictures import Pictures

# How many there are at most.
MOST = 3


def figures_of(
    findings: Findings, marks: Entries, folder: Path, saved: Pictures, named: bool
) -> Iterator[str]:
    """Draw and save the figures at a budget, which is `named` in their files where there are several."""
    curve, budget = findings.curve, findings.budget
    if budget is None or not curve.observed:
        return
    drawn: list[tuple[str, str, Callable[..., Figure | None]]] = [
        ("fidelity", "accuracy-by-fidelity", by_fidelity),
        ("heads", "recall-by-head", by_head),
        ("bytes", "bytes-by-fidelity", by_bytes),
    ]
    at = f"-k-{str(budget).replace('%', 'pct')}" if named else ""
    for caption, name, draw in drawn:
        figure = draw(curve, budget, marks)
        if figure is not None:
            yield save_figure(folder, f"{name}-{curve.slug}{at}", figure, CAPTIONS[caption], saved)
