"""What a step's selection keeps of the attention mass: on SmolLM2's tensors, from a small file, and the bundled model's.

Keys are repeated with a little noise to the length that is asked for, and spread over the heads and dimensions
of the benchmark, as `data.py` says.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import load_file
from torch import Tensor

import topkit
from topkit.experiments.bench.best import Best
from topkit.experiments.bench.data import recorded, widened
from topkit.experiments.bench.kinds import KINDS
from topkit.experiments.bench.rows import OURS, SHARE, Row, quality
from topkit.experiments.bench.scale import length_of
from topkit.experiments.bench.session import Case, Session
from topkit.experiments.decode.driver import Driver
from topkit.indexers.base import Cache
from topkit.indexers.spec import parse

FILE = Path(topkit.__file__).parent / "data" / "smollm2" / "tensors.safetensors"
METRICS = ("mass", "mass_ratio", "shared_mass_ratio")
# Whatever the model: a trained indexer is of one alone.
SPECS = {name: kind.spec for name, kind in KINDS.items() if kind.dtype != "lightning"}
SPECS["exact"] = "shared(exact())"

Fidelity = dict[str, list[dict[str, float]]]


@dataclass(frozen=True)
class Seen:
    """What attention saw in some layers: queries [L, Hq, 1, D], keys [L, Hk, T, D], both in float32."""

    queries: Tensor
    keys: Tensor
    scaling: float


def smollm2(session: Session) -> Seen:
    """The file's tensors."""
    whole = {name: x.to(session.device).float() for name, x in load_file(FILE).items()}
    return Seen(whole["queries"], whole["keys"], float(whole["scaling"]))


def bundled(session: Session) -> Seen:
    """The bundled model's, of as many haystacks as the longest of a CPU's rows needs, or all."""
    s = session.scale
    needed = s.samples if session.cuda else -(-s.captured // s.sample_tokens)
    seen = recorded(session, needed)
    return Seen(seen.queries, seen.keys, seen.scaling)


def kept_cases(session: Session) -> Iterator[Case]:
    """Each length of the steps on a GPU; on a CPU a shorter one, with as large a share of the keys."""
    s, of_bundled = session.scale, cache(lambda: bundled(session))
    for length in s.lengths if session.cuda else (s.captured,):
        k = s.k if session.cuda else max(1, s.k * length // s.lengths[0])
        yield length_of(length), partial(kept_at, session, length, k, of_bundled)


def kept_at(
    session: Session, length: int, k: int, of_bundled: Callable[[], Seen] | None = None
) -> Iterator[Row]:
    """A row a recipe: those of the steps that fit any model, and exact scores shared by a group."""
    real = fidelity(session, smollm2(session), length, k)
    own = fidelity(session, of_bundled(), length, k) if of_bundled else None
    for name, layers in real.items():
        columns = {f"smollm2_{metric}": value for metric, value in _means(layers).items()}
        session.kept[name, length] = columns
        columns |= _means(own[name]) if own else {}
        worth: Any = quality({"mass_ratio": 0.0, **columns}) | columns
        yield session.row(
            "kept", f"{name}, {length_of(length)}", OURS,
            [layer["mass_ratio"] for layer in layers], unit=SHARE, length=length, k=k,
            dtype=KINDS[name].dtype if name in KINDS else "bfloat16",
            note="of SmolLM2; quartiles of its layers", **worth,
        )  # fmt: skip


def fidelity(session: Session, seen: Seen, length: int, k: int) -> Fidelity:
    """What each recipe's selection is worth in each layer, one layer at a time: they are long."""
    worth: Fidelity = {name: [] for name in SPECS}
    for layer in range(len(seen.keys)):
        one = slice(layer, layer + 1)
        queries, keys, _ = widened(session, seen.queries[one], seen.keys[one], length)
        best = Best.of(queries, keys, k, seen.scaling)
        for name, spec in SPECS.items():
            slots = chosen(session, spec, queries, keys, k, seen.scaling)
            worth[name].append(best.fidelity(queries, keys, slots, k))
        del best, keys
        session.release()
    return worth


def chosen(
    session: Session, spec: str, queries: Tensor, keys: Tensor, k: int, scaling: float
) -> Tensor:
    """The slots that a recipe selects of all keys [1, Hs, 1, k]."""
    driver = Driver(parse(spec), 0, scaling, keys.shape[1], backend=session.backend, ordered=False)
    seen = Cache(keys, keys)  # nothing that is judged reads values
    index = driver.build(seen, {})
    return index.select(queries, k, driver.step({"cache": seen})).indices


def _means(layers: list[dict[str, float]]) -> dict[str, float]:
    return {metric: float(np.mean([layer[metric] for layer in layers])) for metric in METRICS}
