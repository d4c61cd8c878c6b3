"""Public code in a checkout: one of its files as a module, without what the file does not need to choose."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import MagicMock

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode


@dataclass(frozen=True)
class Checkout:
    """The folder of a repository."""

    root: Path

    def file(self, path: str, absent: Iterable[str] = ()) -> Any:
        """A file by itself; packages in `absent` are empty ones."""
        _leave_out(absent)
        spec = importlib.util.spec_from_file_location(Path(path).stem, self.root / path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module  # a dataclass looks its module up by name
        spec.loader.exec_module(module)
        return module

    def module(self, name: str, doors: Iterable[str] = (), absent: Iterable[str] = ()) -> Any:
        """A file of a package; the packages in `doors` are entered without running their __init__."""
        _leave_out(absent)
        sys.path.insert(0, str(self.root))
        for door in doors:
            package = ModuleType(door)
            package.__path__ = [str(self.root / door.replace(".", "/"))]
            sys.modules[door] = package
        return importlib.import_module(name)


class OnCPU(TorchFunctionMode):
    """Tensors are where they can be, and say that they are where they should be."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        flag: Any = Tensor.is_cuda
        if func == flag.__get__:
            return True
        how = dict(kwargs or {})
        if "cuda" in str(how.get("device", "")):
            how["device"] = "cpu"
        return func(*args, **how)


def _leave_out(names: Iterable[str]) -> None:
    for name in names:
        sys.modules[name] = MagicMock()


def numbered(like: Tensor) -> Tensor:
    """Values [1, H, T, D] that are the numbers of their slots."""
    return torch.arange(like.shape[2]).float()[:, None].expand_as(like)


def every_head(tensors: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Queries and keys [1, Hq, T, D], the keys repeated for each head of their group."""
    queries, keys = tensors["queries"], tensors["keys"]
    return queries, keys.repeat_interleave(queries.shape[1] // keys.shape[1], 1)


def slots_of(mask: Tensor) -> list[list[int]]:
    """The slots in which a mask [H, T] is set, a list a head."""
    return [row.nonzero()[:, 0].tolist() for row in mask]
