"""The model that a law keeps for the end: made as registered, and run once, after the others.

What was run is noted beside its folder, in LAW-kept.json, from its first haystack on.
"""

# pyright: strict
from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from topkit.documents import SHA256, read_json
from topkit.errors import InputError
from topkit.experiments.model.source import source_of
from topkit.experiments.runs import run_file
from topkit.experiments.runs.parts import write_whole
from topkit.experiments.study.law import Law
from topkit.experiments.study.reading import RUNS, STUDY, study_of

_NOTE = {"law": SHA256, "run": str, "weights": str, "folder": str, "date": str}
_REMEDY = "restore the file"


def note_of(law: Law, out: Path) -> Path:
    """Where it is noted which run of the kept model came first."""
    return out.absolute().parent / f"{law.name}-kept.json"


def require_its_turn(law: Law, model: str, out: Path, force: bool = False) -> None:
    """Raises: InputError before the other models' runs stand beside OUT, for another recipe, and for a second run."""
    if force:
        raise InputError(f"{model} is run once: leave --force out, and its run goes on")
    absent = [one for one in law.models if one not in set(_begun(law, out))]
    if absent:
        raise InputError(
            f"{model} is kept for the end: no run of {law.name} on {' and '.join(absent)} stands beside {out}; "
            f"`topkit study law --out {out.absolute().parent / 'law'}` makes them"
        )
    _require_recipe(law, model)
    require_first(law, out)


def require_first(law: Law, out: Path) -> None:
    """Raises: InputError where another run of the kept model came before the one in OUT."""
    path = note_of(law, out)
    if not path.exists():
        return
    note = read_json(path, _NOTE, _REMEDY)
    if note["law"] == law.sha256 and note["run"] != _run(out).get("id"):
        raise InputError(
            f"the model that {law.name} keeps for the end was run on {note['date']}, in {note['folder']} (weights "
            f"{note['weights'][:12]}): it is run once, and {out} is another run; ask in another place than {path.parent}"
        )


def note(law: Law, out: Path) -> None:
    """Note the run that begins in OUT, where it is the first."""
    path, run = note_of(law, out), _run(out)
    require_first(law, out)
    if path.exists() and read_json(path, _NOTE, _REMEDY)["law"] == law.sha256:
        return
    said = {
        "law": law.sha256,
        "run": run["id"],
        "weights": run["identity"]["weights"],
        "folder": out.absolute().name,
        "date": datetime.now(UTC).date().isoformat(),
    }
    text = json.dumps(said, indent=1) + "\n"
    write_whole(path, lambda to: to.write_text(text, encoding="utf-8"))


def _run(out: Path) -> dict[str, Any]:
    return run_file.read(out) or {}


def _begun(law: Law, out: Path) -> Iterator[str]:
    """The models of which a folder beside OUT holds a run of the law."""
    for path in sorted(out.absolute().parent.glob(f"*/{STUDY}")):
        with suppress(InputError):
            said = study_of(path)
            if said.get("law", {}).get("sha256") == law.sha256:
                own = [{"model": said.get("model", ""), "folder": "."}]
                for one in said.get(RUNS, own):
                    if (path.parent / one["folder"] / run_file.NAME).exists():
                        yield one["model"]


def _require_recipe(law: Law, model: str) -> None:
    made = f"it is made by `{law.kept.made_by}`"
    try:
        path = source_of(model).path.parent / "recipe.json"
    except InputError as error:
        raise InputError(
            f"no model at {model}, which {law.name} keeps for the end; {made}"
        ) from error
    said = read_json(path, {name: int for name in law.kept.recipe}, made)
    other = {name: said[name] for name, its in law.kept.recipe.items() if said[name] != its}
    if other:
        named = ", ".join(f"{name} {its} where {law.kept.recipe[name]} is registered" for name, its in other.items())  # fmt: skip
        raise InputError(f"{path}: {named}; {made}")
