"""The attention that figures are measured on: of SmolLM2 and of the bundled model, over the bundled text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
from safetensors.torch import load_file

import topkit
from topkit import Capture
from topkit.experiments.capture.capture import LayerTensors

BUNDLED = Path(topkit.__file__).parent / "data"
LENGTH = 4096
SPREAD = range(LENGTH // 2 + 63, LENGTH, 64)  # of the second half, whose contexts are alike
NEWEST = range(LENGTH - 16, LENGTH)
SOME = range(2, 30, 3)  # every third layer, but for the two at the bottom


class Data:
    """Captures, each made when it is first asked for, under a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @cached_property
    def whole(self) -> Capture:
        """SmolLM2's layers, queries of SPREAD and NEWEST."""
        return topkit.capture(
            "smollm2", text=BUNDLED / "excerpt.txt", length=LENGTH, samples=1,
            positions=sorted({*SPREAD, *NEWEST}), out=self.folder / "smollm2", device="cpu",
        )  # fmt: skip

    @cached_property
    def every(self) -> Capture:
        """All layers, queries of SPREAD."""
        return part(self.whole, self.whole.layers, SPREAD)

    @cached_property
    def some(self) -> Capture:
        """SOME layers, queries of SPREAD."""
        return part(self.whole, SOME, SPREAD)

    @cached_property
    def steps(self) -> Capture:
        """SOME layers, queries of NEWEST: steps that follow each other."""
        return part(self.whole, SOME, NEWEST)

    @cached_property
    def tensors(self) -> Capture:
        """Five layers' last queries, of the small file that topkit brings."""
        held = load_file(BUNDLED / "smollm2" / "tensors.safetensors")
        queries, keys = (
            {layer: row[None] for layer, row in enumerate(held[name].float())}
            for name in ("queries", "keys")
        )
        return Capture.from_tensors(queries, keys, scaling=float(held["scaling"]))

    @cached_property
    def reference(self) -> Capture:
        """The bundled model's layers with their hidden states, queries of SPREAD."""
        return topkit.capture(
            "reference", text=BUNDLED / "excerpt.txt", length=LENGTH, samples=1, hidden=True,
            positions=list(SPREAD), out=self.folder / "reference", device="cpu",
        )  # fmt: skip


def layers_of(capture: Capture) -> list[LayerTensors]:
    """The tensors of each layer of the one sample."""
    return [capture.load(0, layer) for layer in capture.layers]


def part(capture: Capture, layers: Iterable[int], positions: Sequence[int]) -> Capture:
    """Some layers and queries of a capture of one sample."""
    seen = {layer: capture.load(0, layer) for layer in layers}
    first = next(iter(seen.values()))
    places = np.flatnonzero(np.isin(first.positions.numpy(), positions))
    return Capture.from_tensors(
        {layer: one.queries[:, :, places] for layer, one in seen.items()},
        {layer: one.keys for layer, one in seen.items()},
        {layer: one.values for layer, one in seen.items() if one.values is not None},
        scaling=first.scaling,
        positions=list(positions),
    )


def as_queries(capture: Capture) -> Capture:
    """The same with the keys of the queries' own tokens in the place of the queries."""
    seen = layers_of(capture)
    return Capture.from_tensors(
        {one.layer: one.keys[:, :, one.positions] for one in seen},
        {one.layer: one.keys for one in seen},
        scaling=seen[0].scaling,
        positions=seen[0].positions.tolist(),
    )
