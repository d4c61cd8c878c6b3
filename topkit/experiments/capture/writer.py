"""Writing a capture sample by sample: a rerun computes only what is not there whole."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from torch import Tensor

from topkit.errors import InputError
from topkit.experiments.capture.files import (
    FORMAT,
    MANIFEST,
    OF_SAMPLES,
    THREADS,
    file_name,
    seal,
    unseal,
    verify_file,
    write_tensors,
)
from topkit.experiments.runs.parts import write_whole


class Writer:
    """Writes a capture sample by sample; what was finished outlives a crash.

    `origin` says what the tensors come from: a folder that holds samples of the same origin
    is continued, a folder of another is refused unless `force`, which clears it in `begin`. Nothing
    is written before `begin`.
    """

    def __init__(
        self,
        folder: Path,
        origin: Mapping[str, Any],
        samples: Sequence[int],
        *,
        force: bool = False,
    ) -> None:
        self.folder = folder
        self.samples = samples
        self.force = force
        self.content: dict[str, Any] = {
            **FORMAT,
            "origin": dict(origin),
            "samples": [],
            "files": [],
        }
        if not force:
            self._resume()

    def begin(self) -> None:
        """Make the folder, and clear it by `force`.

        Raises: InputError when it cannot be made.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"cannot write to {self.folder}: {error.strerror}") from error
        if self.force:
            self._clear()

    def _clear(self) -> None:
        # The manifests first: a crash in between must leave nothing that vouches for the rest.
        for pattern in (MANIFEST, OF_SAMPLES, "sample-*-layer-*.safetensors", ".*.tmp"):
            for path in self.folder.glob(pattern):
                path.unlink()

    def _resume(self) -> None:
        for path in (*self.folder.glob(MANIFEST), *self.folder.glob(OF_SAMPLES)):
            manifest = unseal(path)
            theirs, ours = manifest["origin"], self.content["origin"]
            differs = sorted(k for k in {*theirs, *ours} if theirs.get(k) != ours.get(k))
            if {entry["sample"] for entry in manifest["samples"]} - set(self.samples):
                differs.append("samples")
            if differs:
                raise InputError(
                    f"{self.folder} holds another capture (it differs in {', '.join(differs)}); "
                    "choose another --out, or --force to replace it"
                )
            self._merge(manifest)

    def _merge(self, manifest: Mapping[str, Any]) -> None:
        """A manifest's entries of a sample replace those that are known."""
        fresh = {record["sample"] for record in manifest["samples"]}
        for key in ("samples", "files"):
            kept = [entry for entry in self.content[key] if entry["sample"] not in fresh]
            self.content[key] = kept + manifest[key]

    def lists(self, record: Mapping[str, Any]) -> bool:
        """Whether the manifests list the sample of this record, and its files have their sizes."""
        files = self._files(record)
        sizes = {path.name: path.stat().st_size for path in self.folder.glob("*.safetensors")}
        whole = all(sizes.get(entry["name"]) == entry["bytes"] for entry in files)
        return bool(files) and whole and dict(record) in self.content["samples"]

    def has(self, record: Mapping[str, Any]) -> bool:
        """Whether the sample of this record is there whole, to the byte."""
        try:
            for entry in self._files(record):
                verify_file(self.folder, entry)
        except InputError:
            return False
        return self.lists(record)

    def _files(self, record: Mapping[str, Any]) -> list[dict[str, Any]]:
        return [e for e in self.content["files"] if e["sample"] == record["sample"]]

    def add(self, record: Mapping[str, Any], layers: Mapping[int, Mapping[str, Tensor]]) -> None:
        """Write one sample: what the manifest says of it, and its tensors by layer.

        Raises: InputError when the disk is full; the samples finished before stay.
        """
        sample = record["sample"]

        def write(layer: int) -> dict[str, Any]:
            entry = write_tensors(self.folder / file_name(sample, layer), layers[layer])
            return {"sample": sample, "layer": layer, **entry}

        with ThreadPoolExecutor(THREADS) as threads:
            files = list(threads.map(write, sorted(layers)))
        done = {"samples": [dict(record)], "files": files}
        self._merge(done)
        origin = self.content["origin"]
        self._write(f"sample-{sample:05d}.json", {**FORMAT, "origin": origin, **done})

    def close(self, facts: Mapping[str, Any]) -> None:
        """Finish the capture: from here on it opens. `facts` join its manifest."""
        self.content.update(facts)
        for key in ("samples", "files"):
            self.content[key].sort(key=lambda entry: (entry["sample"], entry.get("layer", 0)))
        self._write(MANIFEST, self.content)
        for path in (*self.folder.glob(OF_SAMPLES), *self.folder.glob(".*.tmp")):
            path.unlink()

    def _write(self, name: str, content: Mapping[str, Any]) -> None:
        def write(path: Path) -> None:
            path.write_bytes(seal(content))

        write_whole(self.folder / name, write)
