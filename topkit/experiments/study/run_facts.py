"""A report's block "The run": model, version, commit, date, machine, seed, command."""

# pyright: strict, reportUnknownVariableType=false, reportUnknownArgumentType=false
from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from topkit.experiments.study.reading import OF_A_RUN, RUNS

# Of study.json what has a place of its own, or is for machines.
_ELSEWHERE = ("aims", RUNS, "ran", "key bytes", "leaderboard", "study", "model", *OF_A_RUN)


def run_facts(described: Sequence[Mapping[str, Any]], study: Mapping[str, Any]) -> list[tuple[str, str]]:  # fmt: skip
    """Terms and what they are, in the order of the block; what nobody wrote down is left out."""
    found: dict[str, dict[str, None]] = {}
    for run in described:
        for term, text in _of_run(run):
            found.setdefault(term, {})[text] = None
    if not found and study.get("model"):
        found["model"] = {str(study["model"]): None}
    facts = [(term, "; ".join(texts)) for term, texts in found.items()]
    if command := command_of(described, study):
        facts.append(("command", f"`{command}`"))
    facts += [(name, str(study[name])) for name in OF_A_RUN if name in study]
    return facts + [(name, str(value)) for name, value in study.items() if name not in _ELSEWHERE]


def _of_run(run: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    identity = run["identity"]
    yield "model", ", ".join(dict.fromkeys(str(a["model"]) for a in run["asked"] if a.get("model"))) or "one of Python's"  # fmt: skip
    for session in (run, *run.get("later", ())):
        versions, machine = session.get("versions", {}), session.get("machine", {})
        yield "topkit", str(versions.get("topkit", identity.get("topkit")))
        if session.get("commit"):
            yield "commit", str(session["commit"])
        if session.get("date"):
            yield "date", str(session["date"])
        if machine:
            gpu = f", {machine['gpu']}" if machine.get("gpu") else ""
            yield (
                "machine",
                f"{machine.get('platform')}, {machine.get('processors')} processors{gpu}",
            )
        others = [f"{name} {versions[name]}" for name in versions if name != "topkit"]
        if others:
            yield "libraries", ", ".join(others)
    yield "seed", str(identity.get("seed"))
    for name in ("dtype", "device"):
        if identity.get(name):
            yield name, str(identity[name])


def command_of(described: Sequence[Mapping[str, Any]], study: Mapping[str, Any]) -> str:
    """What runs it again, where it can be said in a line: a study by its name, or one evaluation."""
    if study.get("study"):
        return shlex.join(["topkit", "study", str(study["study"])])
    asked = [one for run in described for one in run["asked"]]
    if len(asked) != 1 or not asked[0].get("model"):
        return ""
    one = asked[0]
    cells = [(cell["indexer"], cell["budget"]) for cell in one.get("cells", ()) if cell["budget"]]
    indexers, budgets = (list(dict.fromkeys(x)) for x in zip(*cells, strict=True)) if cells else ([], [])  # fmt: skip
    if len(cells) != len(indexers) * len(budgets):
        return ""
    words = ["topkit", "evaluate", str(one["model"])]
    for task in one.get("tasks", ()):
        words += ["--task", str(task["task"])]
    words += ["--length", ",".join(map(str, one.get("lengths", ())))]
    words += ["--samples", str(one.get("samples", ""))]
    for indexer in indexers:
        words += ["--indexer", indexer]
    words += ["-k", ",".join(map(str, budgets))] if budgets else []
    return shlex.join([*words, "--seed", str(described[0]["identity"].get("seed", 0)), "--out", "RUN"])  # fmt: skip
