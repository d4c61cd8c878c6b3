"""Captured attention inputs: what the attention of each layer saw, of a model or of one's own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, cast

from topkit.documents import path_of
from topkit.errors import InputError
from topkit.experiments.capture import files
from topkit.experiments.capture.arrays import Array, ByLayer, Positions, samples_by_layer
from topkit.experiments.capture.described import described, require_record
from topkit.experiments.capture.dump import Dump, places
from topkit.experiments.capture.manifest import open_manifest
from topkit.experiments.capture.outline import outline
from topkit.experiments.capture.plain_file import read_file
from topkit.experiments.capture.rows import Said
from topkit.experiments.capture.sample import Sample
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
    dump: Dump | None = None

    @classmethod
    @full_precision()
    def open(
        cls,
        path: str | Path,
        *,
        verify: bool = True,
        layout: str | None = None,
        scaling: float | None = None,
    ) -> Capture:
        """Open a folder that `topkit capture` or `save` wrote, or a file of tensors: .safetensors, .npz, .pt.

        A file holds tensors named as the arguments of `from_tensors`, or as engines name them (q, k, v,
        index_q, k_scale, seq_lens, layers.3.q); docs/dumps.md has all names and forms. It is read layer by layer
        when it is loaded; layout and scaling say what it does not.
        Without `verify` the files of a folder are checked one by one as they are loaded, not all at once here.
        Raises: InputError naming the file that is missing, truncated, altered or not understood.
        """
        path = path_of(path, "a capture")
        try:
            if path.is_file():
                with _named(path):
                    dump = Dump.of(path, layout=layout, scaling=scaling)
                    return cls(described(dump.shapes()), dump=dump)
            manifest = open_manifest(path)
        except OSError as error:
            raise InputError(f"cannot read {path}: {error.strerror}; give a capture") from error
        if (layout, scaling) != (None, None):
            raise InputError(
                f"{path} is a capture, which says its layout and scaling; leave them out"
            )
        if verify:
            files.verify_files(path, manifest)
        return cls(manifest, folder=path, verified=verify)

    @classmethod
    @full_precision()
    def from_tensors(
        cls,
        queries: ByLayer | Mapping[str, ByLayer] | str | Path | None = None,
        keys: ByLayer | None = None,
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
        layout: str | None = None,
        cu_seqlens: Sequence[int] | Array | None = None,
        cu_seqlens_q: Sequence[int] | Array | None = None,
        scales: Mapping[str, ByLayer | float] | None = None,
        index_cache: ByLayer | None = None,
        block_table: Sequence[Sequence[int]] | Array | None = None,
    ) -> Capture:
        """A capture of tensors of one's own, torch or numpy; each row of the batch is a sample.

        Shapes: as in LayerTensors with B in place of 1; without the batch dimension all are one
        sample; several layers as a dict by layer, a list, or one more dimension in front. layout: "bhtd", or as
        engines hold them, "bthd", or "thd" with the sequences end to end. lengths
        [B], the real keys of each row, the rest is padding on the right, or of each sequence in thd, for which
        cu_seqlens [B + 1] will do, and cu_seqlens_q where queries are of other tokens; positions [Tq] or [B, Tq],
        by default the queries are the last Tq real tokens. scaling: by default D ** -0.5; MLA's widths
        (576/512, 192/128) say none, and are refused without. float64 becomes float32. scales, by the name of an
        fp8, int8 or packed MXFP4 tensor, are what it is multiplied by. index_cache with block_table [B, pages] and
        lengths: a paged cache in place of index_keys, 132 or 68 bytes a token, its queries in layout
        "bthd" or [B, H, D] unless said otherwise. The index tensors are enough by themselves. One file, or one dict
        by names as engines give them, stands for all arguments; docs/dumps.md.
        Raises: InputError for shapes that do not fit, for dimensions that look like another layout's, and for
        NaN or infinity (layer and head).
        """
        said = Said(layout, scaling, lengths, positions, cu_seqlens, cu_seqlens_q, block_table)
        beside = (keys, values, index_queries, index_keys, index_weights, index_cache, scales)
        beside += (hidden, latent, rope, prefill_queries, native)
        if isinstance(queries, str | Path):
            _require_alone("a file", beside)
            if all(x is None for x in (lengths, positions, cu_seqlens, cu_seqlens_q, block_table)):
                return cls.open(queries, layout=layout, scaling=scaling)
            path = path_of(queries, "a file")
            with _named(path):
                return cls._of(places(read_file(path), said).values())
        if isinstance(queries, Mapping) and all(isinstance(name, str) for name in queries):
            _require_alone("a dict by names", beside)
            return cls._of(places(cast("Mapping[str, ByLayer]", queries), said).values())
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
            "index_cache": index_cache,
            "index_weights": index_weights,
            "prefill_queries": prefill_queries,
            "native": native,
        }
        there = {name: x for name, x in named.items() if x is not None}
        return cls._of(samples_by_layer(there, scales or {}, said, layer))

    @classmethod
    def _of(cls, samples: Iterable[Sample]) -> Capture:
        tensors = {}
        for sample in samples:
            row = sample.tensors_of()
            row.require_finite()
            tensors[row.sample, row.layer] = row
        return cls(described(tensors), tensors=tensors)

    def __repr__(self) -> str:
        source = self.folder or (self.dump and self.dump.path)
        return f"Capture({outline(self.manifest)}{'' if source is None else f' in {source}'})"

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
        """A digest of all tensors: the same in memory, in a folder and on every machine; of a file, its bytes'."""
        if self.dump is not None:
            return self.dump.fingerprint
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
        if self.dump is not None:
            with _named(self.dump.path):
                return self.dump.load(sample, layer)
        if self.folder is None:
            assert self.tensors is not None
            return self.tensors[sample, layer]
        if not self.verified:
            files.verify_file(self.folder, entry)
        path = self.folder / entry["name"]
        with _named(path):
            loaded = LayerTensors.from_tensors(sample, layer, files.read_tensors(path))
            loaded.require_finite()
            require_record(loaded, self._records[sample])
        return loaded

    def shape_of(self, sample: int, layer: int) -> LayerTensors:
        """What `load` gives; of a file its shapes alone, since a plan comes before anything is read.

        Raises: InputError as `load`, but for what only the numbers show.
        """
        if self.dump is None or (sample, layer) not in self._entries:
            return self.load(sample, layer)
        with _named(self.dump.path):
            return self.dump.shape_of(sample, layer)

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


def _require_alone(what: str, beside: Iterable[object]) -> None:
    if any(x is not None for x in beside):
        raise InputError(
            f"{what} stands for all tensors; leave the others out, or put them into it"
        )


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """An error in what a file holds names the file."""
    try:
        yield
    except InputError as error:
        name = str(path)
        raise InputError(str(error) if name in str(error) else f"{name}: {error}") from error
