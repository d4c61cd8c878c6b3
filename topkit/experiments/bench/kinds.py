"""The recipes whose decoding steps are timed, and the layers that decode through them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from topkit.experiments.bench.data import Tensors
from topkit.experiments.bench.decoding import Decoding, Layer
from topkit.experiments.bench.session import Session
from topkit.experiments.decode.driver import Driver
from topkit.experiments.decode.reader import Reader
from topkit.indexers.base import Cache, Index
from topkit.indexers.budget import parse_budget
from topkit.indexers.lightning import lightning
from topkit.indexers.spec import parse


@dataclass(frozen=True)
class Kind:
    """A recipe that is timed; `a_head`: each query head has a list of its own.

    `projected`: the step begins at the hidden state, with random weights of the model's width,
    so that its selection has no meaning.
    """

    spec: str
    dtype: str
    a_head: bool = False
    projected: bool = False


# "lightning" gets its index's queries, keys and gates ready-made, as from an engine that has projected
# them; `attach` projects them from the hidden state in every step, as "lightning projected" does.
KINDS: dict[str, Kind] = {
    "sign": Kind("shared(sign())", "sign"),
    "int4": Kind("shared(quantized(dtype='int4'))", "int4"),
    "int4 a head": Kind("quantized(dtype='int4')", "int4", a_head=True),
    "lightning": Kind("lightning(weights='given', dtype='fp8')", "lightning"),
    "lightning projected": Kind(
        "lightning(weights='given', dtype='fp8')", "lightning", projected=True
    ),
}


def decoding_of(
    session: Session,
    kind: Kind,
    tensors: Tensors,
    batch: int,
    turns: int = 1,
    weights: Path | None = None,
) -> Decoding:
    """Rows of the cache as layers of `batch` rows each, so that no layer finds its own rows in L2."""
    recipe = lightning(str(weights), "fp8") if weights else parse(kind.spec)
    reader = Reader(recipe, parse_budget(session.scale.k), 0, None, session.backend)
    layers = []
    for first in range(0, session.scale.batch - batch + 1, batch):
        rows = slice(first, first + batch)
        own = (tensors.queries[rows], tensors.keys[rows], tensors.values[rows])
        index = index_of(session, kind, tensors, rows)
        if weights:  # its codes are of one form, however they were made
            index.recipe = recipe  # type: ignore[attr-defined]
        layers.append(Layer(*own, index, inputs_of(session, kind, tensors, rows)))
    return Decoding(layers, reader, tensors.scaling, turns)


def index_of(session: Session, kind: Kind, tensors: Tensors, rows: slice) -> Index:
    """The index of all keys but the newest."""
    inputs = {"index_keys": tensors.index_keys[rows, :, :-1]}
    groups, backend = tensors.keys.shape[1], session.backend
    driver = Driver(parse(kind.spec), 0, tensors.scaling, groups, backend=backend)
    return driver.build(Cache(tensors.keys[rows, :, :-1], tensors.values[rows, :, :-1]), inputs)


def inputs_of(session: Session, kind: Kind, tensors: Tensors, rows: slice) -> Mapping[str, Any]:
    """The inputs of a layer's module for the newest token."""
    if kind.projected:
        count = len(tensors.keys[rows])
        angles = session.drawn(count, 1, session.scale.dim // 2, dtype=torch.float32)
        hidden = session.drawn(count, 1, session.scale.hidden)
        return {"hidden": hidden, "rope": (angles.cos(), angles.sin())}
    if kind.dtype != "lightning":
        return {}
    return {
        "index_keys": tensors.index_keys[rows, :, -1:],
        "index_queries": tensors.index_queries[rows],
        "index_weights": tensors.gates[rows],
    }
