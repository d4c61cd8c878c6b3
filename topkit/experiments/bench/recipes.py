"""What each recipe's `select` costs on a CPU, beside exact scoring and its Top-k."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from topkit.experiments.bench.rows import Row
from topkit.experiments.bench.scale import length_of
from topkit.experiments.bench.session import Case, Session
from topkit.indexers import INDEXERS
from topkit.indexers.base import Cache, Indexer, Selection, Step
from topkit.indexers.spec import parse

EXACT = "exact()"
# Texts of recipes whose defaults need what is not here: another recipe, or weights.
WITH = {
    "keep": "keep(sign())", "refine": "refine(sign())", "shared": "shared(sign())", "degraded": "degraded(0.8)",
    "sampled": "sampled(sign())", "top_p": "top_p(sign())", "twilight": "twilight(exact())",
    "previous": "previous(sign())", "vattention": "vattention(sign(), epsilon=0.1, delta=0.1)",
    "lightning": "lightning(weights='given')", "misa": "misa(weights='given')",
    "indexcache": "indexcache(lightning(weights='given'))", "exact_group": "exact_group(sign())",
    "reuse": "reuse(sign())",
}  # fmt: skip
# Weights that come with no model here, and what another chose.
OF_FILES = ("hashattention", "indices", "native")
# Times exact's, at most; and what the time of others goes to, by their profiles.
MOST = 3.0
EXCEPTIONS = {
    "retrieval_attention()": "half is scores of keys that each round of its walk gathers, a sixth is sorting them",
    "twilight(exact())": "a quarter gathers codes of base's keys, two fifths are two selections and their order",
    "magicpig()": "three quarters is counting in how many of its tables a query meets each key",
    "refine(sign())": "half is the selection and order of 4 k candidates and then k of them, a fifth their true scores",
    "rabitq(rerank=True)": "two thirds is three selections and their order, of estimates, bounds and true scores",
}
# At most so many KV heads, and query heads to each: a head's share of the work is the same.
HEADS, GROUP = 2, 4
# Of a prompt's queries, those that a recipe sees.
PROMPT = 64


def recipe_cases(session: Session) -> Iterator[Case]:
    """A case for each recipe of the registry whose package is here, at the context that a CPU captures."""
    for spec in dict.fromkeys([*texts(), *EXCEPTIONS]):
        yield what_of(spec, session), partial(_beside_exact, session, spec)


def texts() -> list[str]:
    """A recipe of each name whose package is here, and which no file lacks."""
    return [
        WITH.get(name, f"{name}()")
        for name, recipe in INDEXERS.items()
        if name not in OF_FILES and (not recipe.requires or find_spec(recipe.requires) is not None)
    ]


def what_of(spec: str, session: Session) -> str:
    s = session.scale
    return f"select, {spec}, {length_of(s.captured)}, k {s.k}"


def _beside_exact(session: Session, spec: str) -> Iterator[Row]:
    s = session.scale
    ours = {what_of(spec, session): _select(session, parse(spec))}
    shape: Row = {"dtype": "float32", "batch": 1, "length": s.captured, "k": s.k}
    exact = _select(session, parse(EXACT))
    for row in session.in_turns("recipes", ours, EXACT, exact, unit="ms", **shape):
        if spec in EXCEPTIONS:
            yield row | {"note": EXCEPTIONS[spec]}
        else:
            yield row | {"limit": f"<= {MOST:g} x", "within": row["ratio"] <= MOST}


def _select(session: Session, recipe: Indexer) -> Callable[[], Selection]:
    """The select of one query a head over normal keys: inputs of its own are drawn alike."""
    s, own = session.scale, recipe.widths()
    width, kv_heads = own.get("head_dim", s.dim), own.get("kv_heads", HEADS)
    heads = own.get("heads", kv_heads * GROUP)

    def drawn(heads: int, count: int) -> Tensor:
        return session.drawn(1, heads, count, width, dtype=torch.float32)

    keys, values, queries = (
        drawn(kv_heads, s.captured),
        drawn(kv_heads, s.captured),
        drawn(heads, 1),
    )
    gates = session.drawn(1, 1, heads, dtype=torch.float32)
    of_keys = {"cache": Cache(keys, values), "index_keys": keys[:, :1]}
    prompt = {"values": values, "prefill_queries": drawn(heads, PROMPT)}
    newest = {"index_queries": queries, "index_weights": gates}

    def step(inputs: dict[str, Any]) -> Step:
        one = Step(scaling=width**-0.5, kv_heads=kv_heads, inputs=inputs)
        return one.given_to(recipe)

    index = recipe.build(keys, step(of_keys | prompt))
    return lambda: index.select(queries, s.k, step(of_keys | newest))
