"""A file of tensors that is read layer by layer: what it holds is known by shapes before."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from torch import Tensor

from topkit.documents import quote
from topkit.documents.digest import State, file_digest, state_of
from topkit.errors import InputError
from topkit.experiments.capture.arrays import samples_by_layer
from topkit.experiments.capture.files import digest_blocks
from topkit.experiments.capture.names import OF_ALL, arguments
from topkit.experiments.capture.plain_file import read_file
from topkit.experiments.capture.rows import Said, Sample
from topkit.experiments.capture.stacked import beside
from topkit.experiments.capture.tensors import LayerTensors
from topkit.experiments.capture.traces import blobs, keys_and_values, workloads

# flashinfer-bench's workloads; other files hold tensors.
TRACE = ".jsonl"
# Bytes of a file that is digested in pieces; these are spread over it evenly.
LARGE, PIECES, PIECE = 4 << 30, 64, 1 << 20
Places = dict[tuple[int, int], Sample]


@dataclass(frozen=True)
class Dump:
    """A file, how it is read, and what it was like when it was opened: enough for another process to read it."""

    path: Path
    # It, what says which layers it has, and the blobs of a trace, as they were when it was opened.
    files: tuple[tuple[Path, State], ...]
    layout: str | None = None
    scaling: float | None = None

    @classmethod
    def of(cls, path: Path, *, layout: str | None = None, scaling: float | None = None) -> Dump:
        """The dump at a path. Raises: OSError where there is none."""
        files = [path, *beside(path), *(blobs(path) if path.suffix == TRACE else ())]
        return cls(path, tuple((one, state_of(one)) for one in files), layout, scaling)

    def shapes(self) -> dict[tuple[int, int], LayerTensors]:
        """By sample and layer what is there, on the meta device but for positions.

        Raises: InputError for names, shapes and lengths that do not belong together.
        """
        return {place: sample.tensors_of(meta=True) for place, sample in _places(self).items()}

    def load(self, sample: int, layer: int) -> LayerTensors:
        """The tensors of one layer over one sample.

        Raises: InputError for NaN or infinity, scales that are none, and a file that changed since.
        """
        self._require_unchanged()
        row = _places(self)[sample, layer].tensors_of()
        row.require_finite()
        return row

    def _require_unchanged(self) -> None:
        for path, state in self.files:
            try:
                same = state_of(path) == state
            except OSError:
                same = False
            if not same:
                raise InputError(f"{path} changed since it was opened; open it again")

    @property
    def paged(self) -> bool:
        """Whether index keys come from an engine's cache, stored as it stores them."""
        return any(sample.cache is not None for sample in _places(self).values())

    @property
    def digested(self) -> int:
        """Bytes that are read for the fingerprint."""
        sizes = (size for _, (_, size, _) in self.files)
        return sum(size if size <= LARGE else PIECES * PIECE for size in sizes)

    @property
    def bytes(self) -> int:
        """Bytes of the file, and of those that a trace reads."""
        return sum(size for _, (_, size, _) in self.files)

    def shape_of(self, sample: int, layer: int) -> LayerTensors:
        """As `load`, on the meta device but for positions: nothing of the tensors is read."""
        return _places(self)[sample, layer].tensors_of(meta=True)

    @property
    def fingerprint(self) -> str:
        """A digest of what the file holds, and of how it is read: of its bytes, or of a part and its time."""
        said = repr(([digest_of(path) for path, _ in self.files], self.layout, self.scaling))
        return digest_blocks([said.encode()])


def digest_of(path: Path) -> str:
    """The sha256 of a file; of one larger than LARGE that of PIECES, its size and the time it was written.

    Fifty gigabytes would take a minute to read before a plan is known.
    """
    time, size, _ = state_of(path)
    if size <= LARGE:
        return file_digest(path)
    with open(path, "rb") as file:
        blocks = [f"{size} {time}".encode()]
        for number in range(PIECES):
            file.seek(number * (size - PIECE) // (PIECES - 1))
            blocks.append(file.read(PIECE))
    return digest_blocks(blocks)


@lru_cache(maxsize=4)
def _places(dump: Dump) -> Places:
    said = Said(dump.layout, dump.scaling)
    if dump.path.suffix != TRACE:
        return places(read_file(dump.path), said)
    samples: Places = {}
    for workload in workloads(dump.path):
        layout = dump.layout or workload.pop("layout", None)
        own = places(workload, replace(said, layout=layout))
        first = len({sample for sample, _ in samples})
        samples |= {(first + n, at): replace(x, number=first + n) for (n, at), x in own.items()}
    return samples


def places(tensors: Mapping[str, Any], said: Said) -> Places:
    """The samples of named tensors, by sample and layer; what is said goes before what they say.

    Raises: InputError as `Capture.from_tensors`.
    """
    if {"kv_indptr", "kv_indices"} <= set(tensors):
        tensors, said = keys_and_values(tensors), replace(said, layout="thd")
    named = arguments(tensors)
    own = {name: named.pop(name) for name in OF_ALL if name in named}
    of_all = own | {name: x for name, x in vars(said).items() if x is not None}
    scales = named.pop("scales", {})
    if len({"rope_cos", "rope_sin"} & set(named)) == 1:
        raise InputError("rope_cos and rope_sin come together; it holds one of them")
    scaling = of_all.get("scaling")
    if isinstance(scaling, Tensor) and scaling.numel() != 1:
        raise InputError(f"scaling must be one number; got {quote(list(scaling.shape))}")
    samples = samples_by_layer(named, scales, Said(**of_all), layer=0)
    return {(sample.number, sample.layer): sample for sample in samples}
