"""run.json: what a run's rows are made from, by what, when, and every request for them so far."""

# pyright: strict
from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch

import topkit
from topkit.documents import SHA256, OneOf, Text, check, parse_json, read_bytes
from topkit.errors import InputError
from topkit.experiments.runs.parts import write_whole

NAME = "run.json"
FORMAT = {"format": "topkit-run", "version": 2}
SESSION = {
    "date": str,
    "machine": {"platform": str, "processors": int | None, "gpu": str | None},
    "versions": {str: str},
    "commit?": str,
}
# What a run of 0.1 says of itself, and 0.2 with it; digests of parts came later.
EARLIER = {"identity": {"topkit?": str, "seed?": int, str: object}, "asked": [dict]}
_SESSION = ("date", "machine", "versions", "commit")
RUN = {
    **EARLIER,
    "format": OneOf("topkit-run"),
    "version": OneOf(2),
    "id": Text("[0-9a-f]{32}", "32 hexadecimal digits"),
    "contents": {str: {str: str}},
    **SESSION,
    "later": [SESSION],
    "sha256": SHA256,
}


def read(out: Path) -> dict[str, Any] | None:
    """The content of RUN/run.json; None where there is none.

    One of an earlier topkit has no "id": its parts carry no digests.
    Raises: InputError for one that cannot be read, or is not as it was written.
    """
    path, remedy = out / NAME, "use another folder, or --force"
    if not path.exists():
        return None
    raw = read_bytes(path, remedy)
    content = parse_json(raw, EARLIER, path, remedy)
    if "format" not in content and "sha256" not in content:
        return {name: content[name] for name in EARLIER}
    check(content, RUN, path, remedy)
    content.pop("sha256")
    if _sealed(content) != raw:
        raise InputError(f"{path} is not as it was written (sha256); {remedy}")
    return content


def _sealed(content: Mapping[str, Any]) -> bytes:
    """A run file's bytes: its content, with the digest of that content."""
    plain = json.dumps(content, indent=1).encode()
    return json.dumps({**content, "sha256": hashlib.sha256(plain).hexdigest()}, indent=1).encode()


def describe(
    out: Path,
    identity: Mapping[str, Any],
    contents: Mapping[str, Mapping[str, str]] | None = None,
    **request: Any,
) -> str:
    """Write run.json, or add a request to it; returns the run's id.

    contents: what indexers and tasks hold beside their text, by name (see `identity.contents`).
    """
    now = _session(str(identity.get("device")) == "cuda")
    request = json.loads(json.dumps(request))  # as it will be read
    return _add(out, identity, contents or {}, [request], [now])


def join(out: Path, runs: Sequence[Mapping[str, Any]]) -> str:
    """Write what several runs of one identity say into one run.json, or add it; returns the run's id."""
    joined = ""
    for run in runs:
        sessions = [{name: run[name] for name in _SESSION if name in run}, *run["later"]]
        joined = _add(out, run["identity"], run["contents"], run["asked"], sessions)
    return joined


def _add(
    out: Path,
    identity: Mapping[str, Any],
    contents: Mapping[str, Mapping[str, str]],
    requests: Sequence[Any],
    sessions: Sequence[Mapping[str, Any]],
) -> str:
    content = read(out) or {
        **FORMAT,
        "id": uuid4().hex,
        "identity": dict(identity),
        "asked": [],
        "contents": {},
        **sessions[0],
        "later": [],
    }
    content["asked"] += [request for request in requests if request not in content["asked"]]
    content["contents"] |= {name: dict(digests) for name, digests in contents.items()}
    for session in sessions:
        if not any(_same(one, session) for one in (content, *content["later"])):
            content["later"].append(session)
    path = out / NAME
    if not path.exists() or path.read_bytes() != _sealed(content):
        write_whole(path, lambda to: to.write_bytes(_sealed(content)), parents=False)
    return content["id"]


def _session(gpu: bool) -> dict[str, Any]:
    """When, on what machine and by what code rows are written; the commit where topkit is a checkout."""
    source = commit(Path(topkit.__file__).parents[1])
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {
            "platform": platform.platform(),
            "processors": os.cpu_count(),
            "gpu": torch.cuda.get_device_name() if gpu else None,
        },
        "versions": _versions(),
        **({} if source is None else {"commit": source}),
    }


def _same(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two sessions differ in their dates alone."""
    return all(one.get(name) == other.get(name) for name in ("machine", "versions", "commit"))


def _versions() -> dict[str, str]:
    """Of what rows may depend on, as far as it is installed."""
    versions = {
        "topkit": topkit.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    for name in ("transformers", "pyarrow", "faiss-cpu"):
        with suppress(PackageNotFoundError):
            versions[name] = version(name)
    return versions


def commit(source: Path) -> str | None:
    """The commit of a git checkout, "-dirty" where files differ from it; None where there is none.

    A folder of packages may lie within another project's checkout, whose commit says nothing here.
    """
    if not (source / ".git").exists():
        return None
    command = ["git", "-C", source, "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
