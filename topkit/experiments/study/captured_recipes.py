"""What of a study's recipes a capture can be asked."""

# pyright: strict
from __future__ import annotations

from collections.abc import Iterable

from topkit.errors import InputError
from topkit.experiments.capture.capture import Capture
from topkit.experiments.capture.tensors import LayerTensors
from topkit.experiments.measure.replay import require_inputs
from topkit.grammar import short
from topkit.indexers.base import Cache, Indexer, Step
from topkit.indexers.upstream import without_source

# Keys that a recipe is tried on: more than those of all sinks and windows that stand outside clusters.
FEW = 256


def served(recipes: Iterable[Indexer], capture: Capture) -> tuple[list[Indexer], list[str]]:
    """The recipes that a capture has all inputs for, and a line for each that it has not."""
    reasons = {recipe: _lacking(recipe, capture) for recipe in recipes}
    kept = [recipe for recipe, why in reasons.items() if not why]
    return kept, [f"{short(one)} is left out: {why}" for one, why in reasons.items() if why]


def _lacking(recipe: Indexer, capture: Capture) -> str:
    """Why a capture cannot serve a recipe; "" where it can."""
    # A model's own indexer may choose in some layers alone; a file may be of other keys, and a cache without values.
    several = "native" in recipe.needs or bool(recipe.files())
    try:
        for layer in capture.layers if several else capture.layers[:1]:
            tensors = capture.load(capture.samples[0], layer)
            require_inputs(recipe, tensors)
            if recipe.requires != "faiss" and recipe.needs <= {"cache"}:
                _tried(recipe, tensors)
    except InputError as error:
        return str(error)
    own = capture.manifest["origin"].get("weights_sha256")
    if own is not None and recipe.models() and own not in recipe.models():
        return "it was made for another model"
    return without_source(recipe, capture.layers, capture.layers, "the capture")


def _tried(recipe: Indexer, tensors: LayerTensors) -> None:
    """Build on a few keys. Raises: InputError as the recipe does."""
    keys, values = tensors.keys[:, :, :FEW], tensors.values
    cache = Cache(keys, None if values is None else values[:, :, :FEW])
    step = Step(tensors.layer, kv_heads=keys.shape[1], inputs={"cache": cache})
    recipe.build(keys, step.given_to(recipe))
