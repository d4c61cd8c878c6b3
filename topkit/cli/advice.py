"""Advice on the screen: a recipe a row, the cheapest first, and the choice in the last line."""

from __future__ import annotations

import math

import typer

from topkit.cli.screen import show
from topkit.experiments.study.advice import Advice
from topkit.experiments.study.candidates import FAILS, HOLDS, UNDECIDED, Candidate
from topkit.experiments.study.kinds import name_of

_TO = {"exact": "minus exact Top-k", "dense": "minus full attention"}


def show_advice(advice: Advice) -> None:
    """Print what holds, what is undecided and what fails; the choice last, where there is one."""
    rows = [
        _row(one, _TO[advice.against], len(one.tasks) > 1)
        for word in (HOLDS, UNDECIDED, FAILS)
        for one in advice.of(word)
    ]
    show(rows, as_json=False)
    if advice.choice is not None:
        typer.echo(advice.sentence)


def _row(one: Candidate, to: str, several: bool) -> dict[str, str]:
    on = one.worst
    return {
        "recipe": name_of(one.cell),
        "k": str(one.cell.budget),
        "verdict": one.word,
        **({"where it loses most": on.curve.setting} if several else {}),
        "accuracy": f"{on.accuracy:.2f}",
        to: "floor"
        if on.paired is None
        else f"{on.difference:+.3f} [{on.low:+.3f}, {on.high:+.3f}]",
        "KiB read": _kib(one.bytes_read),
        "index KiB": _kib(one.index_bytes),
        "haystacks": f"{len(on.curve.haystacks):,}",
        "would decide": "" if one.to_decide is None else f"{one.to_decide:,}",
    }


def _kib(count: float) -> str:
    return f"{count / 1024:,.1f}" if math.isfinite(count) else ""
