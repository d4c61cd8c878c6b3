"""Studies that are no curve of accuracy: by the word of their key `kind`, what plans one and what reports it."""

# pyright: strict
from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

# A leaderboard of captures, in place of models and tasks.
CAPTURED = "captured-leaderboard"
# Where each kind's two functions are: plan_of(course) gives its plan, write_report(folder, study) its report. By
# name: they are looked up when they are wanted, and may stand in a room above this one.
KINDS: dict[str, str] = {
    "lightning-precision": "topkit.experiments.study.precision_plan",
    CAPTURED: "topkit.experiments.study.captured_plan",
    "scale": "topkit.experiments.study.scale",
    "topk-sft": "topkit.experiments.train.topk_sft",
    "entropy": "topkit.experiments.train.entropy",
}
KIND = "kind"


def planner(kind: str) -> Callable[..., Any]:
    """What plans a course of a kind of study."""
    return import_module(KINDS[kind]).plan_of


def reporter(study: Mapping[str, Any]) -> Callable[[Path, Mapping[str, Any]], Path] | None:
    """What writes the report of a folder whose study.json says its kind; None for a curve."""
    kind = study.get(KIND)
    return import_module(KINDS[kind]).write_report if kind in KINDS else None
