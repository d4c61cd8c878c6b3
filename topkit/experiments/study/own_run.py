"""run.json of a study of its own kind, whose rows are no run's of `evaluate` or `measure`."""

# pyright: strict
from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from topkit.experiments.runs import folder, folder_files, run_file
from topkit.experiments.study.own_kinds import KIND


def describe_study(out: Path, about: Mapping[str, Any], device: str, force: bool) -> None:
    """Write by what, when and where a study is computed, or add that it is gone on with; `force` empties the folder.

    about: what study.json says. Raises: InputError for a folder that holds another run.
    """
    identity = {"topkit": about["topkit"], KIND: about[KIND], "device": device}
    folder.require_same(out, identity, force=force)
    folder_files.clear(out, force)
    out.mkdir(parents=True, exist_ok=True)
    run_file.describe(out, identity, model=about.get("model"))
