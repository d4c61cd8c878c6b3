"""How good must an approximate Top-k indexer be before a language model notices?"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from topkit import testing
    from topkit.experiments.captures import Capture
    from topkit.indexers.spec import parse as indexer

__version__ = "0.1.0"

# Loaded when first asked for, so that `import topkit` is instant.
_LAZY = {
    "Capture": ("topkit.experiments.captures", "Capture"),
    "attach": ("topkit.experiments.attach", "attach"),
    "evaluate": ("topkit.experiments.evaluate", "evaluate"),
    "indexer": ("topkit.indexers.spec", "parse"),
    "measure": ("topkit.experiments.measure", "measure"),
    "testing": ("topkit.testing", None),
}

__all__ = ["Capture", "__version__", "attach", "evaluate", "indexer", "measure", "testing"]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'topkit' has no attribute {name!r}")
    home, attribute = _LAZY[name]
    module = import_module(home)
    value = module if attribute is None else getattr(module, attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
