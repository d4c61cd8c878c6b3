"""What each recipe's `select` costs on a CPU, beside exact scoring and its Top-k."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from importlib.util import find_spec

from topkit.contract.draw import Draw
from topkit.experiments.bench.rows import Row
from topkit.experiments.bench.scale import length_of
from topkit.experiments.bench.session import Case, Session
from topkit.indexers import INDEXERS
from topkit.indexers.base import Indexer, Selection
from topkit.indexers.spec import parse

EXACT = "exact()"
# Texts of recipes whose defaults need what is not here: another recipe, or weights.
WITH = {
    "keep": "keep(sign())", "refine": "refine(sign())", "shared": "shared(sign())", "degraded": "degraded(0.8)",
    "sampled": "sampled(sign())", "top_p": "top_p(sign())", "twilight": "twilight(exact())",
    "lightning": "lightning(weights='given')", "misa": "misa(weights='given')",
}  # fmt: skip
# Read from files of weights or of calibration, or a choice of another's.
OF_FILES = ("double_sparsity", "loki", "hashattention", "projected", "indices", "native")
# At most so many KV heads, and query heads to each: a head's share of the work is the same.
HEADS, GROUP = 2, 4
# Of a prompt's queries, those that a recipe sees.
PROMPT = 64


def recipe_cases(session: Session) -> Iterator[Case]:
    """A case for each recipe of the registry whose package is here, at the context that a CPU captures."""
    for name, recipe in INDEXERS.items():
        if name in OF_FILES or (recipe.requires and find_spec(recipe.requires) is None):
            continue
        spec = WITH.get(name, f"{name}()")
        yield what_of(spec, session), partial(_beside_exact, session, spec)


def what_of(spec: str, session: Session) -> str:
    s = session.scale
    return f"select, {spec}, {length_of(s.captured)}, k {s.k}"


def _beside_exact(session: Session, spec: str) -> Iterator[Row]:
    s = session.scale
    ours = {what_of(spec, session): _select(session, parse(spec))}
    shape: Row = {"dtype": "float32", "batch": 1, "length": s.captured, "k": s.k}
    exact = _select(session, parse(EXACT))
    yield from session.in_turns("recipes", ours, EXACT, exact, unit="ms", **shape)


def _select(session: Session, recipe: Indexer) -> Callable[[], Selection]:
    s = session.scale
    draw = Draw(widths={} if "head_dim" in recipe.widths() else {"head_dim": s.dim})
    one = draw(recipe, length=s.captured, rows=1, heads=(HEADS * GROUP, HEADS))
    step = one.step(recipe, slice(0, s.captured), s.captured, call="build")
    if step.has("prefill_queries"):  # the newest of the prompt, as a capture holds them
        newest = {"prefill_queries": step.input("prefill_queries")[:, :, -PROMPT:]}
        step = replace(step, inputs={**step.inputs, **newest})
    index = recipe.build(one.keys, step)
    return lambda: one.ask(recipe, index, s.k)
