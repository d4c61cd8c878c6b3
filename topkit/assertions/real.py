# pyright: strict
"""Queries and keys of a real model, and such with ties, plateaus and outliers made of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from topkit.errors import InputError
from topkit.kernels import checks
from topkit.kernels.precision import full_precision
from topkit.kernels.score import score

FILE = Path(__file__).parents[1] / "data" / "smollm2" / "tensors.safetensors"


@dataclass(frozen=True, repr=False)
class Real:
    """What attention sees: queries [1, 9, Tq, 64], the last of the T slots, and keys [1, 3, T, 64], in float32.

    Every number of them is one of bfloat16 too.
    """

    layer: int
    kind: str
    queries: Tensor
    keys: Tensor
    scaling: float

    def __repr__(self) -> str:
        shapes = f"queries {list(self.queries.shape)}, keys {list(self.keys.shape)}"
        return f"Real(layer {self.layer}, {self.kind}: {shapes}, scaling {self.scaling})"

    @property
    @full_precision()
    def scores(self) -> Tensor:
        """Exact scores before scaling, -inf behind each query's own slot [1, 9, Tq, T], in float32."""
        count, length = self.queries.shape[2], self.keys.shape[2]
        slots = torch.arange(length, device=self.keys.device)
        hidden = slots > slots[length - count :, None]
        return score(self.queries, self.keys).masked_fill(hidden, float("-inf"))

    def to(self, device: str | torch.device) -> Real:
        """The same on a device."""
        return replace(self, queries=self.queries.to(device), keys=self.keys.to(device))


def _layers() -> tuple[int, ...]:
    return tuple(json.loads(FILE.with_suffix(".layers.json").read_text()))


REAL_LAYERS = _layers()


def real_tensors(
    layer: int, kind: str = "captured", *, queries: int = 1, tokens: int | None = None
) -> Real:
    """The tensors of one layer of SmolLM2-135M-Instruct over 4,095 tokens (topkit/data/smollm2), or made of them.

    layer: one of REAL_LAYERS; kind: one of REAL_KINDS: `captured`, as attention saw them; `ties`, whole numbers from
    -2 to 2, whose scores are exact in float32 in any order, and tie; `plateau`, half of the keys copies of one key
    among the best of its head; `outliers`, the strongest channel 8 times and one key 64 times as large. Always the same
    numbers.
    queries: 1 to 3 a head, those of the heads of its group in turn, its own last; tokens: so many of the first keys.
    Raises: InputError for a layer, a kind, or a number that is not there.
    """
    checks.one_of("layer", layer, REAL_LAYERS)
    checks.one_of("kind", kind, REAL_KINDS)
    known = _captured(layer)
    groups, most = known.queries.shape[1] // known.keys.shape[1], known.keys.shape[2]
    length = most if tokens is None else checks.at_least_one("tokens", tokens)
    count = checks.at_least_one("queries", queries)
    if length > most or count > min(groups, length):
        raise InputError(
            f"tokens must be at most {most}, queries at most {groups} and the tokens; got {length} and {count}"
        )
    cut = replace(known, keys=known.keys[:, :, :length].clone())
    made = _MAKERS[kind](cut)
    by_group = made.queries.reshape(1, -1, groups, made.queries.shape[3])
    turned = [by_group.roll(n, 2).flatten(1, 2) for n in range(count - 1, -1, -1)]
    return replace(made, kind=kind, queries=torch.stack(turned, 2))


@cache
def _captured(layer: int) -> Real:
    opened: Any = safe_open(FILE, framework="pt")
    with opened as file:
        at = slice(REAL_LAYERS.index(layer), REAL_LAYERS.index(layer) + 1)
        queries, keys = (file.get_slice(name)[at].float() for name in ("queries", "keys"))
        return Real(layer, "captured", queries, keys, float(file.get_tensor("scaling")))


def _ties(real: Real) -> Real:
    def whole(x: Tensor) -> Tensor:
        size = x.square().mean((0, 2, 3), keepdim=True).sqrt()
        return (2 * x / size).round().clamp(-2, 2)

    return replace(real, queries=whole(real.queries), keys=whole(real.keys))


def _plateau(real: Real) -> Real:
    weights = (real.scores * real.scaling).softmax(-1)[0, :, 0]
    keys = real.keys.clone()
    by_group = weights.reshape(keys.shape[1], -1, keys.shape[2]).mean(1)
    eighth = by_group.topk(min(8, by_group.shape[1])).indices[:, -1]
    for group, slot in enumerate(map(int, eighth)):
        keys[0, group, 1::2] = real.keys[0, group, slot]
    return replace(real, keys=keys)


def _outliers(real: Real) -> Real:
    keys = real.keys.clone()
    for group in range(keys.shape[1]):
        strongest = int(keys[0, group].square().mean(0).argmax())
        keys[0, group, :, strongest] *= 8
    keys[:, :, keys.shape[2] // 3] *= 64
    return replace(real, keys=keys)


_MAKERS: dict[str, Callable[[Real], Real]] = {
    "captured": lambda real: real,
    "ties": _ties,
    "plateau": _plateau,
    "outliers": _outliers,
}
REAL_KINDS = tuple(_MAKERS)
