"""The figures of a study at one budget: accuracy against fidelity, bytes against fidelity.

The first letters are those of the report: (a) is in accuracy_by_k, (c) in head_maps.
"""

# pyright: strict, reportUnknownMemberType=false
from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from topkit.experiments.study import stats
from topkit.experiments.study.curve import Curve
from topkit.experiments.study.drawing import (
    Entries,
    accuracy_label,
    dense_line,
    drawing,
    key,
    legend_lines,
    points,
    shown,
    two_panels,
    with_intervals,
)
from topkit.experiments.study.kinds import EXACT
from topkit.experiments.study.manners import oracle_families, style
from topkit.experiments.study.null import null_of
from topkit.indexers.budget import Budget


def by_fidelity(curve: Curve, budget: Budget, marks: Entries) -> Figure | None:
    """(b) Accuracy against recall and against mass: oracles as curves, real indexers as points.

    None where nothing was judged.
    """
    if not _judged(curve, budget):
        return None
    with drawing():
        figure, left, right = two_panels(curve, budget)
        scores = stats.accuracy(curve.rates, curve.trials)
        places = curve.where("oracle", "real", "control", budget=budget)
        for axes, metric in ((left, "recall"), (right, "mass")):
            dense = curve.place(None)
            if dense is not None:
                dense_line(axes, scores[dense])
            _oracle_curves(axes, curve, budget, metric, scores)
            _null(axes, curve, budget, metric)
            # Recall may be 1; k keys hold a share of the mass, and its differences are to be seen.
            most = (
                1.0 if metric == "recall" else np.nanmax(curve.mean(metric)[places], initial=0.01)
            )
            axes.set_xlim(-0.03 * most, 1.04 * most)
            axes.set_ylim(-0.05, 1.09)
            axes.set_yticks(np.linspace(0, 1, 6))
            axes.set_xlabel(_WORDS[metric])
            axes.set_ylabel(accuracy_label(curve))
        lines, numbered = legend_lines(left), shown(curve, budget, marks)
        for axes, metric in ((left, "recall"), (right, "mass")):
            points(axes, numbered, curve.mean(metric), scores.value, scores)
        key(figure, lines, numbered.values())
    return figure


def _judged(curve: Curve, budget: Budget) -> bool:
    """Whether any cell has a fidelity that tells something: none has where k covers all that is visible."""
    places = curve.where("oracle", "real", "control", budget=budget)
    judged = np.isfinite(curve.mean("recall")) & ~curve.trivial
    return bool(judged[places].any())


_WORDS = {
    "recall": "recall: share of the exact Top-k kept",
    "mass": "mass: attention weight kept",
}


def _oracle_curves(
    axes: Axes, curve: Curve, budget: Budget, metric: str, scores: stats.Interval
) -> None:
    fidelity = curve.mean(metric)
    exact = curve.place(EXACT, budget)
    for number, (name, places) in enumerate(oracle_families(curve, budget).items()):
        line = places + ([exact] if exact is not None else [])
        line = sorted(line, key=lambda place: fidelity[place])
        with_intervals(axes, fidelity[line], scores, line, zorder=3, label=name, **style(number))


def _null(axes: Axes, curve: Curve, budget: Budget, metric: str) -> None:
    """From exact Top-k's place and score down to no key at all."""
    null, exact = null_of(curve, budget), curve.place(EXACT, budget)
    if null is None or exact is None:
        return
    kept = np.linspace(0, 1, 200)
    name = f"null: {null.score:.2f} $p^m$, m = {null.tokens:.2g} of {curve.answer_tokens:.2g} tokens need a key"
    x = kept * curve.mean(metric)[exact]
    axes.plot(x, null.at(kept), color="0.2", ls=":", lw=1.4, label=name, zorder=2)


def by_bytes(curve: Curve, budget: Budget, marks: Entries) -> Figure | None:
    """(d) Bytes read to choose keys, a decoding step, against the fidelity that they buy.

    None where nothing was judged.
    """
    if not _judged(curve, budget):
        return None
    with drawing():
        figure, left, right = two_panels(curve, budget)
        numbered = shown(curve, budget, marks)
        read = curve.mean("bytes_read") / 1024
        exact = curve.place(EXACT, budget)
        for axes, metric in ((left, "recall"), (right, "mass")):
            if exact is not None:
                axes.axvline(read[exact], color="0.35", lw=1, ls=(0, (5, 2)), label="every key")
            axes.set_xscale("symlog", linthresh=1)
            axes.set_xlim(left=-0.2, right=max(np.nanmax(read), 1) * 2)
            axes.set_ylim(-0.05, 1.09)
            axes.set_yticks(np.linspace(0, 1, 6))
            axes.set_xlabel("KiB read to choose keys, a step and layer")
            axes.set_ylabel(_WORDS[metric])
            points(axes, numbered, read, curve.mean(metric), None)
        key(figure, legend_lines(left), numbered.values())
    return figure
