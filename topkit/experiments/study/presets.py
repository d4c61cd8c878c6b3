"""Studies: which cells answer which tasks, under the name of a preset."""

# pyright: strict
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from topkit.experiments.evaluate.plan import Part
from topkit.experiments.runs.cells import Cell, in_order
from topkit.experiments.tasks.chains import VariableTracking
from topkit.experiments.tasks.needles import MultiKey
from topkit.experiments.tasks.pairs import KeyValueRecall
from topkit.indexers.budget import parse_budgets
from topkit.indexers.spec import parse

NAME = "fidelity-vs-accuracy"


@dataclass(frozen=True)
class Preset:
    """What a study runs, and what it should reach.

    reach: half the width of an interval on an accuracy, at most; exact_between: where exact Top-k
    should score at some budget, else the task is too easy or too hard to tell indexers apart.
    """

    parts: tuple[Part, ...]
    reach: float
    exact_between: tuple[float, float] = (0.3, 0.95)

    @property
    def aims(self) -> dict[str, Any]:
        return {"reach": self.reach, "exact_between": list(self.exact_between)}


# A loss drawn anew at every step; the same with near misses; near misses lost first; a loss that
# lasts, alike in all heads of a layer.
_MANNERS = (
    "",
    "fill='next'",
    "miss='boundary',fill='next'",
    "persist='stream',per='layer'",
)
_REAL = (
    "quantized(dtype='fp8_e4m3')",
    "quantized(dtype='int4')",
    "quantized(dtype='int2')",
    "sign()",
    "refine(sign(),factor=4)",
    "keep(sign(),sink=2,window=4)",
    "shared(sign())",
    "shared(quantized(dtype='int8'))",
    "quest(page_size=4)",
    "streaming_llm(sink=4,window=64)",
    "top_p(quantized(dtype='int4'),mass=0.9)",
    "vattention(quantized(dtype='int4'))",
    "faiss_ivf(nlist=64)",
    "lightning(dtype='fp8')",
)
_SLOW = ("faiss_hnsw(M=16)",)
_CONTROL = ("random()",)


def _cells(specs: Sequence[str], budgets: str) -> list[Cell]:
    return [Cell(parse(spec), budget) for spec in specs for budget in parse_budgets(budgets)]


def _oracles(precisions: Sequence[float], manners: Sequence[str] = _MANNERS) -> list[str]:
    return [f"degraded({p},{manner})" for manner in manners for p in precisions]


def quick() -> Preset:
    """One task in minutes on two cores: at most 30 cells."""
    cells = [
        Cell(),
        *_cells(["exact()"], "2,4,6,16"),
        *_cells(_oracles((0.6, 0.8, 0.95), _MANNERS[:3]), "16"),
        *_cells((*_REAL, *_CONTROL), "16"),
    ]
    part = Part((MultiKey(wording="trained"),), (4096,), 24, tuple(in_order(cells)))
    return Preset((part,), reach=0.12)


def full() -> Preset:
    """The same task over five times the haystacks, with more budgets and precisions.

    About an hour of two cores. A GPU gains little on a model this small; many cores do.
    """
    cells = {
        *quick().parts[0].cells,
        *_cells(["exact()"], "2,3,4,6,8,12,16,32,64"),
        *_cells(_oracles((0.6, 0.8, 0.9, 0.95)), "16"),
        *_cells(_SLOW, "16"),
    }
    part = Part((MultiKey(wording="trained"),), (4096,), 128, tuple(in_order(cells)))
    return Preset((part,), reach=0.06)


def tasks() -> Preset:
    """Other tasks, answer lengths and a longer context, quick's cells over full's haystacks: hours."""
    cells = [
        Cell(),
        *_cells(["exact()"], "4,8,16,32"),
        *_cells(_oracles((0.6, 0.8, 0.95), _MANNERS[:3]), "16"),
        *_cells((*_REAL, *_CONTROL), "16"),
    ]
    needles = MultiKey(wording="trained")
    settings = (
        (KeyValueRecall(), 4096),
        (needles, 8192),
        (VariableTracking(hops=2), 4096),
        (replace(needles, digits=10), 4096),
    )
    parts = [Part((task,), (length,), 128, tuple(in_order(cells))) for task, length in settings]
    return Preset(tuple(parts), reach=0.06)


PRESETS = {"quick": quick, "full": full, "tasks": tasks}
