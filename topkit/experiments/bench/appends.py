"""What it takes a recipe's index on a CPU to take in the key of one token, for the heads of an 8B model."""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from topkit.experiments.bench.recipes import GROUP, PROMPT, texts
from topkit.experiments.bench.rows import OURS, Row
from topkit.experiments.bench.scale import length_of
from topkit.experiments.bench.session import Case, Session
from topkit.indexers.base import Cache, Index, Indexer, Step
from topkit.indexers.spec import parse

# Milliseconds that an append takes at most, on two cores.
MOST = 1.0
# What takes nearly all of them.
NOTES = {
    "faiss_hnsw()": "in 2 threads: FAISS walks each head's graph to link a key, whose keys are not in the caches; 1.3 in one",
}
# Appends that are timed, and those before them, which make room.
TOKENS, WARM = 40, 3


def append_key_cases(session: Session) -> Iterator[Case]:
    """A case for each recipe that is timed as it selects, but those whose weights are of fewer heads."""
    for spec in texts():
        if "kv_heads" not in parse(spec).widths():
            yield what_of(spec, session), partial(_timed, session, spec)


def what_of(spec: str, session: Session) -> str:
    s = session.scale
    return f"append of a key, {spec}, {s.groups} heads, {length_of(s.captured)}"


def _timed(session: Session, spec: str) -> Iterator[Row]:
    s = session.scale

    def measure() -> dict[str, Any]:
        spans = _spans(session, parse(spec))
        shape = {"dtype": "float32", "batch": 1, "length": s.captured}
        return {"spans": spans, "unit": "ms", **shape}

    row = session.attempt("appends", what_of(spec, session), OURS, measure)
    if row["median"] is not None:
        row |= {"limit": f"<= {MOST:g} ms", "within": row["median"] <= MOST}
    if spec in NOTES:
        row["note"] = NOTES[spec]
    yield row


def _spans(session: Session, recipe: Indexer) -> list[float]:
    """Milliseconds of each append, one after the other, to an index of all tokens but those.

    What remembers has selected once: in decoding every append but the first comes after that.
    """
    s, count = session.scale, WARM + TOKENS
    width, heads = recipe.widths().get("head_dim", s.dim), s.groups * GROUP

    def drawn(heads: int, count: int) -> Tensor:
        return session.drawn(1, heads, count, width, dtype=torch.float32)

    keys, values = (drawn(s.groups, s.captured + count) for _ in range(2))
    queries = drawn(heads, PROMPT)

    def step(first: int, stop: int) -> Step:
        inputs = {
            "cache": Cache(keys[:, :, :stop], values[:, :, :stop]),
            "values": values[:, :, first:stop],
            "index_keys": keys[:, :1, first:stop],
            **({} if first else {"prefill_queries": queries}),
        }
        return Step(scaling=width**-0.5, kv_heads=s.groups, inputs=inputs).given_to(recipe)

    index: Index = recipe.build(keys[:, :, : s.captured], step(0, s.captured))
    if recipe.traits().remembers:
        index.select(drawn(heads, 1), s.k, step(s.captured - 1, s.captured))
    spans: list[float] = []
    for slot in range(s.captured, s.captured + count):
        new, where = keys[:, :, slot : slot + 1], step(slot, slot + 1)
        began = time.perf_counter()
        index.append(new, where)
        spans.append((time.perf_counter() - began) * 1e3)
    return spans[WARM:]
