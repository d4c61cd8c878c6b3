"""A file of tensors that is read layer by layer: what it holds is known by shapes before."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from topkit.documents import quote
from topkit.documents.digest import State, file_digest, state_of
from topkit.errors import InputError
from topkit.experiments.capture.arrays import samples_by_layer
from topkit.experiments.capture.files import digest_blocks
from topkit.experiments.capture.names import OF_ALL, arguments
from topkit.experiments.capture.plain_file import read_file
from topkit.experiments.capture.rows import Said, Sample
from topkit.experiments.capture.tensors import LayerTensors

Places = dict[tuple[int, int], Sample]


@dataclass(frozen=True)
class Dump:
    """A file, how it is read, and what it was like when it was opened: enough for another process to read it."""

    path: Path
    state: State
    layout: str | None = None
    scaling: float | None = None

    @classmethod
    def of(cls, path: Path, *, layout: str | None = None, scaling: float | None = None) -> Dump:
        """The dump at a path. Raises: OSError where there is none."""
        return cls(path, state_of(path), layout, scaling)

    def shapes(self) -> dict[tuple[int, int], LayerTensors]:
        """By sample and layer what is there, on the meta device but for positions.

        Raises: InputError for names, shapes and lengths that do not belong together.
        """
        return {place: sample.tensors_of(meta=True) for place, sample in _places(self).items()}

    def load(self, sample: int, layer: int) -> LayerTensors:
        """The tensors of one layer over one sample.

        Raises: InputError for NaN or infinity, scales that are none, and a file that changed since.
        """
        if state_of(self.path) != self.state:
            raise InputError(f"{self.path} changed since it was opened; open it again")
        row = _places(self)[sample, layer].tensors_of()
        row.require_finite()
        return row

    @property
    def fingerprint(self) -> str:
        """A digest of the file's bytes and of how they are read."""
        said = repr((file_digest(self.path), self.layout, self.scaling))
        return digest_blocks([said.encode()])


@lru_cache(maxsize=4)
def _places(dump: Dump) -> Places:
    said: dict[str, Any] = {"layout": dump.layout, "scaling": dump.scaling}
    return places(read_file(dump.path), {n: x for n, x in said.items() if x is not None})


def places(tensors: Mapping[str, Any], said: Mapping[str, Any]) -> Places:
    """The samples of named tensors, by sample and layer; what is said goes before what they say.

    Raises: InputError as `Capture.from_tensors`.
    """
    named = arguments(tensors)
    of_all = {name: named.pop(name) for name in OF_ALL if name in named} | said
    scales = named.pop("scales", {})
    if len({"rope_cos", "rope_sin"} & set(named)) == 1:
        raise InputError("rope_cos and rope_sin come together; it holds one of them")
    scaling = of_all.get("scaling")
    if getattr(scaling, "ndim", 0) and scaling.numel() != 1:
        raise InputError(f"scaling must be one number; got {quote(list(scaling.shape))}")
    samples = samples_by_layer(named, scales, Said(**of_all), layer=0)
    return {(sample.number, sample.layer): sample for sample in samples}
