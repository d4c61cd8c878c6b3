"""The figure of surveys: each trait by layer, a point a group of heads."""

# pyright: strict, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false
from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import altair as alt

from topkit.documents import path_of
from topkit.errors import InputError, extras_named
from topkit.experiments.measure.survey import TRAITS, Row, Survey

_WORDS = {
    "first_weight": "weight on slot 0",
    "sink_weight": "weight on the first {sink} slots",
    "entropy": "entropy of a row, nats",
    "support": "effective support, keys",
    "offset": "offset: |mean key| over spread",
    "outliers": "channel outliers: RMS, max over median",
    "outliers_centred": "channel outliers of centred keys",
    "sink_cosine": "cosine of slot 0 with the mean key",
}
# Of each capture: ink, the points' marker, the line's dash; a capture alone has points of another ink.
_INKS = ("#0b4f8a", "#b3541e", "#1b7f5c")
_MARKS = ("circle", "square", "triangle-up")
_DASHES = ([1, 0], [5, 2], [1, 1.5])
_POINTS = "#b3541e"


def survey_figure(surveys: Survey | Mapping[str, Survey]) -> alt.VConcatChart:
    """A panel a trait; a line is the mean over a layer's groups.

    Several captures, by name, share the panels: each over the depth of its own model.
    """
    named = {"": surveys} if isinstance(surveys, Survey) else surveys
    deep = len(named) > 1
    lines = _rows({name: one.by_layer() for name, one in named.items()}, deep)
    points = _rows({name: list(one.rows) for name, one in named.items()}, deep)
    sinks = ", ".join(dict.fromkeys(str(survey.sink) for survey in named.values()))
    # Of two panels that are compared, one scale.
    both = [row[name] for row in points for name in ("outliers", "outliers_centred") if row[name] is not None]  # fmt: skip
    panels = [
        _panel(lines, points, trait, list(named), deep, max(both, default=1.0)).properties(
            title=_WORDS[trait].format(sink=sinks), width=190, height=140
        )
        for trait in TRAITS
    ]
    return alt.vconcat(alt.hconcat(*panels[:4]), alt.hconcat(*panels[4:])).configure(
        view={"stroke": None}, title={"fontSize": 10.5, "fontWeight": "normal", "anchor": "start"}
    )


def _rows(rows: Mapping[str, list[Row]], deep: bool) -> list[Row]:
    """The rows with their capture's name and where in depth they stand."""
    made: list[Row] = []
    for name, its in rows.items():
        # Layers without a value have no point, but a place.
        last = max(max(row["layer"] for row in its), 1) if deep else 1
        made += [{**row, "capture": name, "depth": row["layer"] / last} for row in its]
    return made


def _panel(
    lines: list[Row], points: list[Row], trait: str, names: list[str], deep: bool, top: float
) -> Any:
    """The lines and points of all captures in one panel."""
    title = "depth: layer over the last" if deep else "layer"
    x = alt.X("depth:Q", title=title).scale(nice=False, padding=6)
    y = alt.Y(f"{trait}:Q", title=None)
    if trait in ("first_weight", "sink_weight"):
        y = y.scale(domain=[0, 1])
    elif trait == "support":
        y = y.scale(type="log")
    elif trait in ("outliers", "outliers_centred"):
        y = y.scale(domain=[0, top])
    count = len(names)
    inks = [_INKS[n % len(_INKS)] for n in range(count)]
    key = alt.Legend(title=None, orient="top") if deep else None
    color = alt.Color("capture:N", legend=key).scale(domain=names, range=inks)
    dash = alt.StrokeDash("capture:N", legend=key).scale(domain=names, range=[_DASHES[n % 3] for n in range(count)])  # fmt: skip
    shape = alt.Shape("capture:N", legend=None).scale(domain=names, range=[_MARKS[n % 3] for n in range(count)])  # fmt: skip
    there = f"isValid(datum.{trait})"
    line = alt.Chart(alt.Data(values=lines)).transform_filter(there).mark_line(strokeWidth=1.3)
    dots = alt.Chart(alt.Data(values=points)).transform_filter(there)
    dots = dots.mark_point(filled=True, size=14, opacity=0.5)
    ink = color if deep else alt.value(_POINTS)
    return alt.layer(
        line.encode(x, y, color=color, strokeDash=dash), dots.encode(x, y, color=ink, shape=shape)
    )


@extras_named()
def save_survey_figure(surveys: Survey | Mapping[str, Survey], path: str | Path) -> Path:
    """Write the figure; the file's ending says how: png, svg or pdf.

    Raises: InputError for another ending.
    """
    path = path_of(path, "a figure to write")
    if path.suffix not in (".png", ".svg", ".pdf"):
        raise InputError(f"a figure ends in .png, .svg or .pdf; got {path}")
    import vl_convert as vlc

    spec = survey_figure(surveys).to_dict()
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".svg":
        path.write_text(vlc.vegalite_to_svg(spec), encoding="utf-8")
    else:
        write = {".png": lambda: vlc.vegalite_to_png(spec, scale=2), ".pdf": lambda: vlc.vegalite_to_pdf(spec)}  # fmt: skip
        path.write_bytes(write[path.suffix]())
    return path
