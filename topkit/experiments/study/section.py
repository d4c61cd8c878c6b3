"""The part of a report of one setting: its figures at one or more budgets, in the page and as pictures."""

# pyright: strict, reportUnknownMemberType=false
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import altair as alt
import numpy as np

from topkit.experiments.study import headings
from topkit.experiments.study.accuracy_by_k import by_budget, by_budget_all
from topkit.experiments.study.captions import CAPTIONS, alt_of
from topkit.experiments.study.cell_rows import METRICS, Row
from topkit.experiments.study.curve import Curve, settings_of
from topkit.experiments.study.figures import by_cost, by_fidelity
from topkit.experiments.study.findings import Findings
from topkit.experiments.study.head_maps import MOST, HeadMap, all_maps, head_maps, one_map, weakest
from topkit.experiments.study.null import null_of
from topkit.experiments.study.sentences import said
from topkit.experiments.study.sheet import Sheet, Shown

# Pictures of a setting at a budget, at most.
PICTURES = 5


@dataclass
class Part:
    """A heading and the figures below it; maps: a figure each, with a name and what is seen."""

    heading: str
    figures: list[Shown] = field(default_factory=list[Shown])
    maps: list[tuple[HeadMap, Shown]] = field(default_factory=list[tuple[HeadMap, Shown]])


def parts_of(
    findings: Findings, sheet: Sheet, names: Sequence[str], rows: list[Row], at: str, again: bool
) -> list[Part]:
    """What is shown at a budget. names: the families of the page; at: what names the budget in files.

    again: accuracy against cost is shown, too, which the first screen may have.
    """
    curve, budget = findings.curve, findings.budget
    slug = curve.slug
    by_k = Shown(f"accuracy-by-k-{slug}", CAPTIONS["k"], alt_of("k", rows, ""))
    parts = [Part(headings.of_budgets(rows))]
    # It is of all budgets: once.
    if any(row["kept"] for row in rows) and by_k.name not in sheet.figures:
        parts[0].figures.append(sheet.show(by_k, "k", partial(by_budget, names), {"cells": rows}))
    if budget is None or not curve.observed:
        return parts if parts[0].figures else []
    shown = [row for row in rows if row["budget"] == str(budget)]
    made = _Figures(findings, sheet, names, rows, shown, at)
    parts[0:0] = [
        Part(headings.of_cost(shown), made.cost(again)),
        Part(headings.of_fidelity(shown), made.fidelity()),
    ]
    if curve.running_text or made.stuck:
        parts.insert(0, Part(headings.of_losses(shown), made.losses()))
    if maps := head_maps(curve, budget):
        parts.append(Part(weakest(maps), [], made.maps(maps)))
    return [part for part in parts if part.figures or part.maps]


@dataclass
class _Figures:
    findings: Findings
    sheet: Sheet
    names: Sequence[str]
    rows: list[Row]
    shown: Sequence[Row]
    at: str

    def __post_init__(self) -> None:
        self.budget = str(self.findings.budget)
        self.lines = lines_of(self.findings)
        self.slug = self.findings.curve.slug

    @property
    def stuck(self) -> bool:
        """Whether accuracy is at its floor or ceiling for most."""
        places = self.findings.compared("real")
        return bool(places) and self.findings.goal(places)[0] != "accuracy"

    def cost(self, again: bool) -> list[Shown]:
        there = [row for row in self.shown if row["share"] is not None]
        if not there:
            return []
        kinds = ["recall", "mass"] if any(row["recall"] is not None for row in there) else []
        self._save("accuracy-by-bytes", "cost", lambda: by_cost(self.names, legend=True))
        if kinds:
            draw = lambda: alt.hconcat(*(by_cost(self.names, kind, True) for kind in kinds))  # noqa: E731
            self._save("bytes-by-fidelity", "bytes", draw)
        first = (
            [self._shown("accuracy-by-bytes", "again", "cost", partial(by_cost, self.names))]
            if again
            else []
        )
        return first + [
            self._shown(f"bytes-by-{kind}", "bytes", f"bytes-{kind}", partial(by_cost, self.names, kind))
            for kind in kinds
        ]  # fmt: skip

    def fidelity(self) -> list[Shown]:
        there = [m for m in METRICS if any(row[m] is not None for row in self.shown)]
        if not there:
            return []
        draw = lambda: alt.hconcat(*(by_fidelity(self.names, m, True) for m in there))  # noqa: E731
        self._save("accuracy-by-fidelity", f"fidelity-{'-'.join(there)}", draw)
        return [
            self._shown(f"accuracy-by-{m}", m, f"fidelity-{m}", partial(by_fidelity, self.names, m))
            for m in there
        ]

    def losses(self) -> list[Shown]:
        there = [gain for gain in ("nll_gap", "kl") if any(row.get(gain) is not None and row["share"] is not None for row in self.shown)]  # fmt: skip
        return [
            self._shown(f"{gain.partition('_')[0]}-by-bytes", gain, gain, partial(by_cost, self.names, gain))
            for gain in there
        ]  # fmt: skip

    def maps(self, maps: Sequence[HeadMap]) -> list[tuple[HeadMap, Shown]]:
        name = f"recall-by-head-{self.slug}{self.at}"
        rows = [row for one in maps[:MOST] for row in one.rows]
        self.sheet.save(name, "heads", all_maps, {"cells": rows})
        return [
            (one, self.sheet.show(
                Shown(f"{name}-{n}", one.takeaway, f"Recall by layer and query head of {one.name}: {one.takeaway}."),
                "map", one_map, {"cells": np.asarray(one.recall)},
            ))
            for n, one in enumerate(maps)
        ]  # fmt: skip

    def _shown(
        self, name: str, caption: str, kind: str, make: Callable[[], alt.TopLevelMixin]
    ) -> Shown:
        shown = Shown(f"{name}-{self.slug}{self.at}", CAPTIONS[caption], alt_of(caption, self.shown, self.budget))  # fmt: skip
        data = {"cells": self.rows, "lines": self.lines}
        return self.sheet.show(shown, kind, make, data, self.budget)

    def _save(self, name: str, kind: str, make: Callable[[], alt.TopLevelMixin]) -> None:
        data = {"cells": self.rows, "lines": self.lines}
        self.sheet.save(f"{name}-{self.slug}{self.at}", kind, make, data, self.budget)


def save_by_budget(
    curves: Sequence[Curve], rows: Mapping[int, list[Row]], sheet: Sheet, names: Sequence[str]
) -> None:
    """Have accuracy by k written of all settings, as one picture."""
    every = [
        {**row, "setting": setting}
        for curve, setting in zip(curves, settings_of(curves), strict=True)
        for row in rows[id(curve)]
    ]
    # Without a cell that keeps some keys there is no panel, and a picture of none has no size.
    if any(row["kept"] for row in every):
        sheet.save("accuracy-by-k", "k-all", partial(by_budget_all, names), {"cells": every})


def lines_of(findings: Findings) -> list[Row]:
    """Exact Top-k's level and the margin below it, full attention's, and what chance alone would leave."""
    of, curve, budget = findings, findings.curve, str(findings.budget or "")
    rows: list[Row] = []
    exact, dense = of.exact.get(of.budget), curve.place(None)
    if exact is not None:
        level = float(of.accuracy.value[exact])
        words = f"exact Top-k {said(of.accuracy[exact])}"
        rows.append({"line": "exact", "y": level, "words": words, "budget": budget})
        below = f"margin of {of.margin:g} below it"
        rows.append({"line": "margin", "y": level - of.margin, "words": below, "budget": budget})
    if dense is not None:
        level = float(of.accuracy.value[dense])
        words = f"full attention {level:.2f}"
        rows.append({"line": "dense", "y": level, "words": words, "budget": budget})
    null = None if of.budget is None else null_of(curve, of.budget)
    if null is not None and exact is not None:
        kept = np.linspace(0, 1, 41)
        for metric in ("recall", "mass"):
            reach = float(curve.mean(metric)[exact])
            if np.isfinite(reach):
                pairs = zip((kept * reach).tolist(), null.at(kept).tolist(), strict=True)
                rows += [{"line": f"null {metric}", "x": round(x, 4), "y": round(y, 4)} for x, y in pairs]  # fmt: skip
    # What has no score has no level.
    return [row for row in rows if np.isfinite(row["y"])]
