"""The studies that come with topkit, by name."""

# pyright: strict
from __future__ import annotations

from pathlib import Path

from topkit.documents import read_yaml

FOLDER = Path(__file__).parents[2] / "data" / "studies"
REMEDY = "write a study of topkit (docs/studies.md)"


def names() -> list[str]:
    """In the order of the alphabet."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def abouts() -> dict[str, str]:
    """What each says of itself, by name."""
    schema = {"about": str, str: object}
    return {name: read_yaml(FOLDER / f"{name}.yaml", schema, REMEDY)["about"] for name in names()}
