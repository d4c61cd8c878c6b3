"""Rows that go on a token at a time at fixed shapes, as CUDA graphs from haystack to haystack. Imports its own room.

`Graphed` gives what whole passes give; `worthwhile` says where it is worth it, `refuse` where it is no more.
"""

from topkit.experiments.evaluate.stepped.beside import Run, side_by_side
from topkit.experiments.evaluate.stepped.graphed import Graphed, refuse
from topkit.experiments.evaluate.stepped.groups import in_turn, is_fixed, together, worthwhile
from topkit.experiments.evaluate.stepped.token_steps import ROUND, STEPS, release

__all__ = [
    "ROUND",
    "STEPS",
    "Graphed",
    "Run",
    "in_turn",
    "is_fixed",
    "refuse",
    "release",
    "side_by_side",
    "together",
    "worthwhile",
]
