"""Names that a package hands on, each imported when it is first asked for."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

from topkit.errors import extras_named


def lazily(
    package: str, homes: Mapping[str, str]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """The `__getattr__` and `__dir__` of a package whose names live in the modules `homes`.

    A home is "module" where the name is the same there, else "module:name"; "module:" is the module.
    """
    space = vars(sys.modules[package])

    def find(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        home, colon, own = homes[name].partition(":")
        with extras_named():
            module = import_module(home)
        space[name] = module if colon and not own else getattr(module, own or name)
        return space[name]

    return find, lambda: sorted({*space, *homes})
