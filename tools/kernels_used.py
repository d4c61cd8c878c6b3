"""Which of a recipe's operations Triton's kernels would do on a GPU: asked on a CPU, of what each kernel takes."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib import import_module
from typing import Any
from unittest.mock import patch

import torch

from topkit.contract.draw import Draw
from topkit.errors import InputError
from topkit.indexers import Indexer
from topkit.kernels import backend

# By what each operation does: what is not among them serves all recipes alike.
SAID = {
    "quantize_append": ("appends",),
    "score": ("scores",),
    "score_keys": ("scores",),
    "page_bounds": ("scores",),
    "score_select": ("scores", "selects"),
    "select_topk": ("selects",),
    "select_pages": ("selects",),
    "select_mass": ("selects",),
}
ORDER = ("appends", "scores", "selects")


def kernels_used(recipe: Indexer) -> set[str]:
    """What kernels do of a decoding step over heads of 64 in bf16: append, score, select."""
    used = set[str]()
    with _watched(used), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            _decode(recipe)
        except InputError:  # a file, or a package, that is not here
            return set()
    return used


def _decode(recipe: Indexer) -> None:
    one = Draw(widths={"head_dim": 64})(recipe, rows=1)
    one = replace(
        one, queries=one.queries.bfloat16(), keys=one.keys.bfloat16(), values=one.values.bfloat16()
    )
    index = one.build(recipe, [30, 31])
    one.ask(recipe, index, 5)
    if recipe.traits().fixed and index.room() is not None:
        step, token = one.step_at(recipe, 32), slice(31, 32)
        index.append(one.keys[:, :, token], step)
        index.select(one.queries[:, :, token], 5, step)


@contextmanager
def _watched(used: set[str]) -> Iterator[None]:
    """Note the operations whose kernel takes what they are given."""
    own = backend.resolve

    def of(operation: str) -> Any:
        def resolve(
            asked: str, tensor: torch.Tensor, unsupported: str | None = None, *rest: Any
        ) -> str:
            if asked != "torch" and unsupported is None:
                used.update(SAID[operation])
            return own(asked, tensor, unsupported, *rest)

        return resolve

    modules = {name: import_module(f"topkit.kernels.{name}") for name in SAID}
    patches = [patch.object(module, "resolve", of(name)) for name, module in modules.items()]
    for one in patches:
        one.start()
    try:
        yield
    finally:
        for one in patches:
            one.stop()
