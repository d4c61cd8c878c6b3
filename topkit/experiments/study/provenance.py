"""Where a run's rows come from, in a sentence a session: version, commit, date, seed, machine."""

# pyright: strict
from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


def sentences(run: Mapping[str, Any]) -> Iterator[str]:
    """What run.json says of a run: of its begin, and of later sessions where code or machine were others."""
    version, seed = run["identity"].get("topkit"), run["identity"].get("seed")
    yield from _model(run)
    if "id" not in run:
        yield (
            f"Rows by topkit {version}, seed {seed}, which kept no digests: nothing shows whether they "
            "are as they were written."
        )
        return
    yield f"Rows by topkit {version}{_session(run)}; seed {seed}. Every part is as it was written (sha256)."
    for later in run["later"]:
        yield f"More rows by topkit {version}{_session(later)}."


def _model(run: Mapping[str, Any]) -> Iterator[str]:
    """The model, where its name alone does not tell which files it was."""
    names = dict.fromkeys(str(one["model"]) for one in run["asked"] if one.get("model"))
    name = ", ".join(names) or "one of Python's"
    if revision := run["identity"].get("revision"):
        yield f"The model is {name}, revision {revision}."
    elif file := run["identity"].get("gguf"):
        yield f"The model is {name}, a GGUF file (sha256 {file})."


def _session(session: Mapping[str, Any]) -> str:
    machine, versions = session["machine"], session["versions"]
    commit, gpu = session.get("commit"), machine.get("gpu")
    libraries = ", ".join(f"{name} {versions[name]}" for name in versions if name != "topkit")
    places = [
        f" (commit {commit})" if commit else "",
        f", begun on {session['date']}",
        f", on {machine.get('platform')}, {machine.get('processors')} processors",
        f", {gpu}" if gpu else "",
        f", with {libraries}" if libraries else "",
    ]
    return "".join(places)
