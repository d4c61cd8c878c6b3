"""Writing a capture sample by sample: a rerun computes only what is not there whole."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from torch import Tensor

from topkit.errors import InputError
from topkit.experiments.capture.files import THREADS, file_name, verify_file, write_tensors
from topkit.experiments.capture.manifest import FORMAT, MANIFEST, OF_SAMPLES, seal, unseal
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
        self.content: dict[str, Any] = {**FORMAT, "origin": dict(origin)}
        # What the manifests say of each sample, and of its files.
        self.records: dict[int, dict[str, Any]] = {}
        self.files: dict[int, list[dict[str, Any]]] = {}
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
        wanted = set(self.samples)
        for path in (*self.folder.glob(MANIFEST), *self.folder.glob(OF_SAMPLES)):
            manifest = unseal(path)
            theirs, ours = manifest["origin"], self.content["origin"]
            differs = sorted(k for k in {*theirs, *ours} if theirs.get(k) != ours.get(k))
            if {entry["sample"] for entry in manifest["samples"]} - wanted:
                differs.append("samples")
            if differs:
                raise InputError(
                    f"{self.folder} holds another capture (it differs in {', '.join(differs)}); "
                    "choose another --out, or --force to replace it"
                )
            self._merge(manifest)

    def _merge(self, manifest: Mapping[str, Any]) -> None:
        """A manifest's entries of a sample replace those that are known."""
        for record in manifest["samples"]:
            self.records[record["sample"]] = record
            self.files[record["sample"]] = []
        for entry in manifest["files"]:
            self.files[entry["sample"]].append(entry)

    def lists(self, record: Mapping[str, Any]) -> bool:
        """Whether the manifests list the sample of this record, and its files have their sizes."""
        sample = record["sample"]
        if self.records.get(sample) != record:
            return False
        return all(self._size(entry["name"]) == entry["bytes"] for entry in self.files[sample])

    def _size(self, name: str) -> int | None:
        try:
            return (self.folder / name).lstat().st_size
        except OSError:
            return None

    def has(self, record: Mapping[str, Any]) -> bool:
        """Whether the sample of this record is there whole, to the byte."""
        if not self.lists(record):
            return False
        try:
            for entry in self.files[record["sample"]]:
                verify_file(self.folder, entry)
        except InputError:
            return False
        return True

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
        samples = sorted(self.records)
        self.content["samples"] = [self.records[sample] for sample in samples]
        self.content["files"] = [
            entry for n in samples for entry in sorted(self.files[n], key=lambda e: e["layer"])
        ]
        self.content.update(facts)
        self._write(MANIFEST, self.content)
        for path in (*self.folder.glob(OF_SAMPLES), *self.folder.glob(".*.tmp")):
            path.unlink()

    def _write(self, name: str, content: Mapping[str, Any]) -> None:
        def write(path: Path) -> None:
            path.write_bytes(seal(content))

        write_whole(self.folder / name, write, parents=False)
