"""Studies that are no curve of accuracy: by the word of their key `kind`, what plans one and what reports it."""

# pyright: strict
from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

# A leaderboard of captures, in place of models and tasks.
CAPTURED = "captured-leaderboard"
_STUDY, _TRAIN = "topkit.experiments.study", "topkit.experiments.train"
# Where each kind's two functions are: plan_of(course) gives its plan, write_report(folder, study) its report. By
# name: they are looked up when they are wanted, and may stand in a room above this one. Apart, since a shard is
# planned where nothing can be drawn.
KINDS: dict[str, tuple[str, str]] = {
    "lightning-precision": (f"{_STUDY}.precision_plan", f"{_STUDY}.precision_report"),
    CAPTURED: (f"{_STUDY}.captured_plan", f"{_STUDY}.captured_board"),
    "scale": (f"{_STUDY}.scale", f"{_STUDY}.scale_report"),
    "topk-sft": (f"{_TRAIN}.arms_plan", f"{_TRAIN}.topk_sft"),
    "entropy": (f"{_TRAIN}.arms_plan", f"{_TRAIN}.entropy"),
}
KIND = "kind"


def planner(kind: str) -> Callable[..., Any]:
    """What plans a course of a kind of study."""
    return import_module(KINDS[kind][0]).plan_of


def reporter(study: Mapping[str, Any]) -> Callable[[Path, Mapping[str, Any]], Path] | None:
    """What writes the report of a folder whose study.json says its kind; None for a curve."""
    kind = study.get(KIND)
    return import_module(KINDS[kind][1]).write_report if kind in KINDS else None
