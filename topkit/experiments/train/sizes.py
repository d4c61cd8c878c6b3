"""The reference model's recipe at other sizes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from topkit.errors import InputError
from topkit.experiments.train.recipe import Recipe
from topkit.experiments.train.train import train_reference
from topkit.experiments.train.world import World
from topkit.grammar import nearest

# Layers, width, query heads, KV heads, feed-forward, peak of the learning rate. Heads have 64 dimensions; the peak
# falls as one over the width (of 384: 3e-3).
_SHAPES: dict[str, tuple[int, int, int, int, int, float]] = {
    "4m": (4, 256, 4, 2, 704, 4.5e-3),
    "14m": (8, 384, 6, 2, 1024, 3e-3),
    "60m": (13, 640, 10, 2, 1792, 1.8e-3),
    "150m": (15, 960, 15, 3, 2560, 1.2e-3),
}
SIZES = tuple(_SHAPES)


def recipe_of(size: str, seed: int = 0, second: bool = False) -> Recipe:
    """The recipe of the first run, or of the second, at a size: "4m", "14m", "60m" or "150m".

    Raises: InputError for another size.
    """
    if size not in _SHAPES:
        raise InputError(f"unknown size {size!r}; {nearest(size, SIZES)}")
    layers, width, heads, kv_heads, feed_forward, peak = _SHAPES[size]
    base = Recipe.second() if second else Recipe()
    share = peak / Recipe().peak
    return replace(
        base, layers=layers, width=width, heads=heads, kv_heads=kv_heads, feed_forward=feed_forward,
        peak=base.peak * share, floor=base.floor * share, last=base.last * share, seed=base.seed + 2 * seed,
    )  # fmt: skip


def train_size(
    size: str,
    corpus: Path | str,
    out: Path | str,
    *,
    seed: int = 0,
    tiny: bool = False,
    stop_after: float = math.inf,
    report: Callable[[str], object] = print,
    **how: Any,
) -> bool:
    """Train a model of a size by both runs of the recipe: the first in out/first, and from it the second, in out.

    tiny: both runs in seconds, at a tiny shape, to show that they run. how: as `train_reference` takes it. Returns
    whether the end was reached in `stop_after` seconds; a further call goes on.
    Raises: InputError for an unknown size, and as `train_reference`.
    """
    out, first = Path(out), Path(out) / "first"
    report = World.joined(how.get("device", "cuda")).said_by(report)
    recipes = [recipe_of(size, seed, second) for second in (False, True)]
    if tiny:
        recipes = [replace(Recipe.tiny(), seed=recipe.seed) for recipe in recipes]
    if not (first / "model" / "model.safetensors").is_file():
        report(f"{size}: the first run, in {first}")
        if not train_reference(
            corpus, first, recipe=recipes[0], stop_after=stop_after, report=report, **how
        ):
            return False
        # What is left of the time is little; a further call begins the second run.
        if stop_after < math.inf:
            return False
    report(f"{size}: the second run, in {out}")
    return train_reference(
        corpus, out, recipe=recipes[1], start_from=first / "model", stop_after=stop_after,
        report=report, **how,
    )  # fmt: skip
