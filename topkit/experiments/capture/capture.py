"""Captured attention inputs: what the attention of each layer saw, of a model or of one's own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from topkit.documents import path_of, quote
from topkit.errors import InputError
from topkit.experiments.capture import files
from topkit.experiments.capture.arrays import Array, ByLayer, Positions, by_layer, rows_of
from topkit.experiments.capture.manifest import FORMAT, open_manifest
from topkit.experiments.capture.plain_file import arguments_of
from topkit.experiments.capture.tensors import LayerTensors, estimate_bytes
from topkit.experiments.capture.writer import Writer
from topkit.kernels.precision import full_precision

__all__ = ["Capture", "LayerTensors", "estimate_bytes"]


@dataclass(frozen=True, eq=False)
class Capture:
    """The tensors of some samples and layers, in memory or in a folder, and what is known of them.

    `manifest` tells origin, samples (prompt, positions), layers (scaling) and files (sha256).
    """

    manifest: dict[str, Any]
    folder: Path | None = None
    tensors: Mapping[tuple[int, int], LayerTensors] | None = None
    verified: bool = False

    @classmethod
    @full_precision()
    def open(cls, path: str | Path, *, verify: bool = True) -> Capture:
        """Open a folder that `topkit capture` or `save` wrote, or a plain safetensors file.

        A plain file holds tensors named as the arguments of `from_tensors`: queries, keys, and if
        they are there values, index_queries, index_keys, index_weights, native, scaling, lengths, positions.
        Without `verify` the files are checked one by one as they are loaded, not all at once here.
        Raises: InputError naming the file that is missing, truncated, altered or not understood.
        """
        path = path_of(path, "a capture")
        try:
            if path.is_file():
                with _named(path):
                    return cls.from_tensors(**arguments_of(path))
            manifest = open_manifest(path)
        except OSError as error:
            raise InputError(f"cannot read {path}: {error.strerror}; give a capture") from error
        if verify:
            files.verify_files(path, manifest)
        return cls(manifest, folder=path, verified=verify)

    @classmethod
    @full_precision()
    def from_tensors(
        cls,
        queries: ByLayer,
        keys: ByLayer,
        values: ByLayer | None = None,
        index_queries: ByLayer | None = None,
        index_keys: ByLayer | None = None,
        index_weights: ByLayer | None = None,
        scaling: float | None = None,
        lengths: Sequence[int] | Array | None = None,
        *,
        positions: Positions | None = None,
        hidden: ByLayer | None = None,
        latent: ByLayer | None = None,
        rope: tuple[ByLayer, ByLayer] | None = None,
        prefill_queries: ByLayer | None = None,
        native: ByLayer | None = None,
        layer: int = 0,
    ) -> Capture:
        """A capture of tensors of one's own, torch or numpy; each row of the batch is a sample.

        Shapes: as in LayerTensors with B in place of 1; without the batch dimension all are one
        sample; several layers as a dict by layer, a list, or one more dimension in front. lengths
        [B], the real keys of each row, the rest is padding on the right; positions [Tq] or [B, Tq],
        by default the queries are the last Tq real tokens. scaling: by default D ** -0.5; MLA with
        absorbed weights (576/512) wants that of its unabsorbed heads. float64 becomes float32.
        Raises: InputError for shapes that do not fit, and for NaN or infinity (layer and head).
        """
        named = {
            "queries": queries,
            "keys": keys,
            "values": values,
            "hidden": hidden,
            "latent": latent,
            "rope_cos": rope and rope[0],
            "rope_sin": rope and rope[1],
            "index_queries": index_queries,
            "index_keys": index_keys,
            "index_weights": index_weights,
            "prefill_queries": prefill_queries,
            "native": native,
        }
        layers = by_layer({name: x for name, x in named.items() if x is not None}, layer)
        tensors = {}
        for number, of_layer in layers.items():
            for row in rows_of(number, of_layer, scaling, lengths, positions):
                row.require_finite()
                tensors[row.sample, number] = row
        return cls(_manifest(tensors), tensors=tensors)

    @cached_property
    def _entries(self) -> dict[tuple[int, int], dict[str, Any]]:
        """What the manifest says of each file, by sample and layer."""
        return {(entry["sample"], entry["layer"]): entry for entry in self.manifest["files"]}

    @cached_property
    def _records(self) -> dict[int, dict[str, Any]]:
        """What the manifest says of each sample."""
        return {record["sample"]: record for record in self.manifest["samples"]}

    @property
    def samples(self) -> list[int]:
        return sorted({entry["sample"] for entry in self.manifest["files"]})

    @property
    def layers(self) -> list[int]:
        return sorted({entry["layer"] for entry in self.manifest["files"]})

    @property
    def fingerprint(self) -> str:
        """A digest of all tensors: the same in memory, on disk and on every machine."""
        entries = [(e["sample"], e["layer"], self._sha256(e)) for e in self.manifest["files"]]
        return files.digest_blocks([repr(sorted(entries)).encode()])

    def _sha256(self, entry: dict[str, Any]) -> str:
        if self.tensors is not None and "sha256" not in entry:
            named = self.tensors[entry["sample"], entry["layer"]].tensors()
            entry["sha256"] = files.digest_blocks(files.file_blocks(named))
        return entry["sha256"]

    @full_precision()
    def load(self, sample: int, layer: int) -> LayerTensors:
        """The tensors of one layer over one sample, memory-mapped where they lie on disk.

        Raises: InputError when the capture does not hold them, or the file was altered.
        """
        entry = self._entries.get((sample, layer))
        if entry is None:
            raise InputError(
                f"the capture has no sample {sample}, layer {layer}; "
                f"samples: {self.samples}, layers: {self.layers}"
            )
        if self.folder is None:
            assert self.tensors is not None
            return self.tensors[sample, layer]
        if not self.verified:
            files.verify_file(self.folder, entry)
        path = self.folder / entry["name"]
        with _named(path):
            loaded = LayerTensors.from_tensors(sample, layer, files.read_tensors(path))
            loaded.require_finite()
            _require_record(loaded, self._records[sample])
        return loaded

    def only(self, sample: int, *layers: int) -> Capture:
        """The capture of some layers over one sample: what another process needs to load them.

        Files are verified when they are loaded, which may be hours later.
        Raises: InputError when the capture does not hold them.
        """
        places = [(sample, layer) for layer in layers]
        for place in places:
            if place not in self._entries:
                raise InputError(f"the capture has no sample {sample}, layer {place[1]}")
        entries = [self._entries[place] for place in places]
        manifest = {**self.manifest, "samples": [self._records[sample]], "files": entries}
        tensors = None if self.tensors is None else {p: self.tensors[p] for p in places}
        return replace(self, manifest=manifest, tensors=tensors, verified=False)

    @full_precision()
    def save(self, folder: str | Path, *, force: bool = False) -> Capture:
        """Write the capture into a folder, and open it there.

        Raises: InputError when the folder holds another capture (unless `force`), or the disk is
        full.
        """
        folder = path_of(folder, "a folder for the capture")
        origin = {**self.manifest["origin"], "fingerprint": self.fingerprint}
        files.require_space(folder, sum(entry["bytes"] for entry in self.manifest["files"]))
        writer = Writer(folder, origin, self.samples, force=force)
        writer.begin()
        layers = self.layers
        for record in self.manifest["samples"]:
            if not writer.has(record):
                loaded = [self.load(record["sample"], layer) for layer in layers]
                writer.add(record, {x.layer: x.tensors() for x in loaded})
        known = {"origin", "samples", "files"}
        writer.close({key: x for key, x in self.manifest.items() if key not in known})
        return Capture.open(folder)


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """An error in what a file holds names the file."""
    try:
        yield
    except InputError as error:
        name = str(path)
        raise InputError(str(error) if name in str(error) else f"{name}: {error}") from error


def _require_record(loaded: LayerTensors, record: Mapping[str, Any]) -> None:
    """A manifest and its files must say the same of a sample."""
    tokens, positions = loaded.keys.shape[2], loaded.positions.tolist()
    if (tokens, positions) != (record["tokens"], record["positions"]):
        raise InputError(
            f"{tokens} keys, and queries at {quote(positions)}, where the manifest says "
            f"{record['tokens']} and {quote(record['positions'])}; capture again with --force"
        )


def _manifest(tensors: Mapping[tuple[int, int], LayerTensors]) -> dict[str, Any]:
    of_layer = {layer: x for (_, layer), x in tensors.items()}
    of_sample = {sample: x for (sample, _), x in tensors.items()}
    listed = [x.native.shape[-1] for x in tensors.values() if x.native is not None]
    return {
        **FORMAT,
        "origin": {"source": "tensors"},
        **({"own_k": max(listed)} if listed else {}),
        "layers": [{"layer": n, "scaling": x.scaling} for n, x in sorted(of_layer.items())],
        "samples": [
            {"sample": n, "tokens": x.keys.shape[2], "positions": x.positions.tolist()}
            for n, x in sorted(of_sample.items())
        ],
        "files": [
            {"sample": sample, "layer": layer, "bytes": files.file_bytes(x.tensors())}
            for (sample, layer), x in sorted(tensors.items())
        ],
    }
