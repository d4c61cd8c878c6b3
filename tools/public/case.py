"""One question that public code and a recipe both answer, and the tensors that it is asked of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from public import files

Choices = list[list[int]]


@dataclass(frozen=True)
class Case:
    """Tensors of a seed, the recipe that is to choose as public code does, and what public code is set to.

    The index is built on `prompt` tokens (None: all) and appended to token by token; the newest asks. k is the
    budget (None: as many keys as public code chose). `layers` are asked one after the other, and the last one's
    choice is compared. Where the recipe names {file}, that is one of public.files,
    of the kind `file`. A `mutant` is the recipe with another parameter, which must choose otherwise.
    """

    recipe: str
    mutant: str = ""
    seed: int = 0
    heads: tuple[int, int] = (4, 2)
    length: int = 64
    width: int = 16
    prompt: int | None = None
    k: int | None = None
    layers: tuple[int, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])
    file: str = ""

    @classmethod
    def read(cls, document: Mapping[str, Any]) -> Case:
        lists = {name: tuple(x) for name, x in document.items() if isinstance(x, list)}
        return cls(**{**document, **lists})

    def of_layer(self, layer: int) -> Case:
        """The same of other tensors."""
        return replace(self, seed=self.seed + layer)

    def document(self) -> dict[str, Any]:
        return {name: x for name, x in asdict(self).items() if x not in (None, "", {}, ())}

    def tensors(self) -> dict[str, Tensor]:
        """Queries [1, Hq, T, D], keys and values [1, Hk, T, D], and what an indexer of its own reads [1, T, width].

        Keys have a common offset and a few channels that are larger, as those of models do. NumPy draws them, so
        that they do not depend on torch's version.
        """
        rng = np.random.default_rng(self.seed)
        (heads, groups), length, width = self.heads, self.length, self.width
        scale, offset = np.exp(rng.normal(size=width) / 2), rng.normal(size=(groups, 1, width)) / 2
        drawn = {
            "queries": rng.normal(size=(heads, length, width)) * scale,
            "keys": rng.normal(size=(groups, length, width)) * scale + offset,
            "values": rng.normal(size=(groups, length, width)),
            "hidden": rng.normal(size=(length, files.HIDDEN)),
            "latent": rng.normal(size=(length, files.LATENT)),
        }
        angles = rng.normal(size=(length, files.ROPE // 2)).repeat(2, 0).reshape(length, -1)
        drawn |= {"cos": np.cos(angles), "sin": np.sin(angles)}
        return {name: torch.from_numpy(x.astype(np.float32))[None] for name, x in drawn.items()}

    def written(self, folder: Path) -> Path | None:
        """The file that the recipe names, drawn by the same seed and written to a folder."""
        if not self.file:
            return None
        path = folder / f"{self.file}.safetensors"
        write: Callable[..., None] = getattr(files, self.file)
        write(path, np.random.default_rng([self.seed, 1]), self)
        return path

    def spec(self, path: Path | None, mutant: bool = False) -> str:
        return (self.mutant if mutant else self.recipe).replace("{file}", f"'{path}'")
