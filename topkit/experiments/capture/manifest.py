"""What a capture's folder says of itself: a manifest that vouches for every byte of its files.

The manifest comes last. Until then each sample that is whole has a small one of its own, sealed in
the same way, so that a rerun computes the others alone and trusts nothing half-written.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from topkit.documents import (
    SHA256,
    FileName,
    Number,
    OneOf,
    Prose,
    Text,
    Whole,
    check,
    parse_json,
    read_bytes,
)
from topkit.errors import InputError

MANIFEST = "manifest.json"
OF_SAMPLES = "sample-*.json"
FORMAT = {"format": "topkit-capture", "version": 1}

SCHEMA = {
    "format": OneOf("topkit-capture"),
    "version": OneOf(1),
    # What model and tokens, or tensors, the samples come from: a rerun continues the same alone.
    "origin": {str: object},
    # "positions": the slots of the queries that were kept; "ids": the tokens, as text.
    "samples": [
        {
            "sample": Whole(),
            "tokens": Whole(1),
            "positions": [Whole()],
            "ids?": Text(r"(\d+( \d+)*)?", "token numbers"),
            "ids_sha256?": SHA256,
            "prompt?": Prose,
        }
    ],
    # "tensors": the dtype and shape of each, as people read them.
    "files": [
        {
            "sample": Whole(),
            "layer": Whole(),
            "name": FileName(),
            "bytes": Whole(),
            "sha256": SHA256,
            "tensors?": {str: str},
        }
    ],
    # Of a finished capture.
    "layers?": [{"layer": Whole(), "scaling": Number()}],
    "skipped?": [{"layer": Whole(), "reason": str}],
    # The model in one line.
    "outline?": str,
    # How many keys the model's own indexer lets a query attend to.
    "own_k?": Whole(1),
    "versions?": {str: str},
}


def seal(content: Mapping[str, Any]) -> bytes:
    """A manifest's bytes: its content in one canonical form, with the digest of that form."""
    digest = hashlib.sha256(_canonical(content)).hexdigest()
    return _canonical({**content, "sha256": digest})


def _canonical(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, indent=1, sort_keys=True, allow_nan=False) + "\n").encode()


def unseal(path: Path) -> dict[str, Any]:
    """The content of a sealed manifest.

    Raises: InputError when it is missing, differs in any byte from what was written, or says what no
    capture can be.
    """
    remedy = "capture again with --force"
    if path.is_symlink():
        raise InputError(f"{path} is a link; a capture's files stand in its folder: copy it there")
    raw = read_bytes(path, remedy)
    content = parse_json(raw, {str: object}, path, remedy)
    content.pop("sha256", None)
    if seal(content) != raw:
        raise InputError(f"{path} is not as it was written; {remedy}")
    if {name: content.get(name) for name in FORMAT} != FORMAT:
        raise InputError(f"{path} is not of the form {FORMAT}; read it with the topkit it is from")
    check(content, SCHEMA, path, remedy)
    for fault in _faults(content):
        raise InputError(f"{path}: {fault}; {remedy}")
    return content


def _faults(content: Mapping[str, Any]) -> Iterator[str]:
    """What fits the schema, and yet cannot be."""
    records, entries = content["samples"], content["files"]
    samples = [record["sample"] for record in records]
    places = [(entry["sample"], entry["layer"]) for entry in entries]
    layers = {layer for _, layer in places}
    for what, listed in (("sample", samples), ("file", [entry["name"] for entry in entries])):
        if len(set(listed)) < len(listed):
            yield f"a {what} is listed twice"
    product = len(set(places)) == len(places) == len(samples) * len(layers)
    if not product or {sample for sample, _ in places} != set(samples):
        yield "files must be one of each sample and layer"
    described = [one["layer"] for one in content.get("layers", ())]
    if "layers" in content and sorted(described) != sorted(layers):
        yield f"layers must be those of the files, {sorted(layers)}; got {sorted(described)}"
    for record in records:
        at = record["positions"]
        if not at or sorted(set(at)) != at or at[-1] >= record["tokens"]:
            yield (
                f"positions of sample {record['sample']} must ascend within its "
                f"{record['tokens']} tokens"
            )


def open_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a finished capture.

    Raises: InputError when there is none (an interrupted capture has none yet), or it is altered.
    """
    if not folder.is_dir():
        raise InputError(f"there is no capture at {folder}")
    if not (folder / MANIFEST).exists():
        if any(folder.glob(OF_SAMPLES)):
            raise InputError(
                f"the capture in {folder} was interrupted; the same command finishes it"
            )
        if any(folder.glob("workloads/*/*.jsonl")):
            raise InputError(
                f"{folder} is a trace of flashinfer-bench: give one of its workloads/*/*.jsonl"
            )
        raise InputError(f"{folder / MANIFEST} is missing: {folder} is not a capture")
    content = unseal(folder / MANIFEST)
    if not content["files"]:
        raise InputError(f"{folder / MANIFEST} lists no file; capture again with --force")
    return content
