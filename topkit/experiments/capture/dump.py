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
from topkit.experiments.capture.traces import blobs, workloads

# flashinfer-bench's workloads; other files hold tensors.
TRACE = ".jsonl"
Places = dict[tuple[int, int], Sample]


@dataclass(frozen=True)
class Dump:
    """A file, how it is read, and what it was like when it was opened: enough for another process to read it."""

    path: Path
    state: tuple[State, ...]
    layout: str | None = None
    scaling: float | None = None

    @classmethod
    def of(cls, path: Path, *, layout: str | None = None, scaling: float | None = None) -> Dump:
        """The dump at a path. Raises: OSError where there is none."""
        return cls(path, _states(path), layout, scaling)

    def shapes(self) -> dict[tuple[int, int], LayerTensors]:
        """By sample and layer what is there, on the meta device but for positions.

        Raises: InputError for names, shapes and lengths that do not belong together.
        """
        return {place: sample.tensors_of(meta=True) for place, sample in _places(self).items()}

    def load(self, sample: int, layer: int) -> LayerTensors:
        """The tensors of one layer over one sample.

        Raises: InputError for NaN or infinity, scales that are none, and a file that changed since.
        """
        if _states(self.path) != self.state:
            raise InputError(f"{self.path} changed since it was opened; open it again")
        row = _places(self)[sample, layer].tensors_of()
        row.require_finite()
        return row

    @property
    def fingerprint(self) -> str:
        """A digest of the file's bytes and of how they are read."""
        parts = [
            self.path,
            *beside(self.path),
            *(blobs(self.path) if self.path.suffix == TRACE else ()),
        ]
        said = repr(([file_digest(path) for path in parts], self.layout, self.scaling))
        return digest_blocks([said.encode()])


def _states(path: Path) -> tuple[State, ...]:
    """Of a file, and of what says which layers it has."""
    return tuple(state_of(one) for one in (path, *beside(path)))


@lru_cache(maxsize=4)
def _places(dump: Dump) -> Places:
    said: dict[str, Any] = {"layout": dump.layout, "scaling": dump.scaling}
    known = {name: x for name, x in said.items() if x is not None}
    if dump.path.suffix != TRACE:
        return places(read_file(dump.path), known)
    samples: Places = {}
    for workload in workloads(dump.path):
        own = places(workload, {"layout": workload.pop("layout", None), **known})
        first = len({sample for sample, _ in samples})
        samples |= {(first + n, at): replace(x, number=first + n) for (n, at), x in own.items()}
    return samples


def places(tensors: Mapping[str, Any], said: Mapping[str, Any]) -> Places:
    """The samples of named tensors, by sample and layer; what is said goes before what they say.

    Raises: InputError as `Capture.from_tensors`.
    """
    named = arguments(tensors)
    of_all = {name: named.pop(name) for name in OF_ALL if name in named} | dict(said)
    scales = named.pop("scales", {})
    if len({"rope_cos", "rope_sin"} & set(named)) == 1:
        raise InputError("rope_cos and rope_sin come together; it holds one of them")
    scaling = of_all.get("scaling")
    if isinstance(scaling, Tensor) and scaling.numel() != 1:
        raise InputError(f"scaling must be one number; got {quote(list(scaling.shape))}")
    samples = samples_by_layer(named, scales, Said(**of_all), layer=0)
    return {(sample.number, sample.layer): sample for sample in samples}
