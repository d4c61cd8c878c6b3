"""The text of a thing: how indexers and tasks are written, printed and looked up by name.

docs/grammar.md has the rule. This room knows neither indexers nor tasks; each has a registry of its own.
"""

from topkit.grammar.build import make, parse
from topkit.grammar.named import Named, Verbatim, flat, full, later, quoted, short, unprinted
from topkit.grammar.registry import Registry, nearest
from topkit.grammar.values import parameters

__all__ = [
    "Named",
    "Registry",
    "Verbatim",
    "flat",
    "full",
    "later",
    "make",
    "nearest",
    "parameters",
    "parse",
    "quoted",
    "short",
    "unprinted",
]
