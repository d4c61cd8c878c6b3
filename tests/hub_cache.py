"""A cache of the Hugging Face hub, filled by hand in its own layout."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path


def fill(cache: Path, name: str, model: Path, branch: str | None = "main") -> str:
    """Put a model's folder into the cache as OWNER/NAME; returns the commit that it stands for.

    models--OWNER--NAME/{blobs,refs,snapshots}: a snapshot links to blobs, a branch names a snapshot.
    """
    repository = cache / f"models--{name.replace('/', '--')}"
    files = {path.name: path.read_bytes() for path in sorted(model.iterdir())}
    commit = hashlib.sha1(b"".join(files.values())).hexdigest()
    snapshot = repository / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir(exist_ok=True)
    for file, content in files.items():
        blob = repository / "blobs" / hashlib.sha256(content).hexdigest()
        blob.write_bytes(content)
        (snapshot / file).symlink_to(Path("../../blobs") / blob.name)
    if branch is not None:
        (repository / "refs" / branch).parent.mkdir(parents=True, exist_ok=True)
        (repository / "refs" / branch).write_text(commit)
    return commit


def forget(cache: Path, name: str) -> None:
    """Take a model out of the cache."""
    shutil.rmtree(cache / f"models--{name.replace('/', '--')}")
