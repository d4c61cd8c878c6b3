"""A capture in one line."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

# The parts that a line names, where they are there.
_PARTS = {
    "values": "values",
    "index_keys": "index tensors",
    "hidden": "hidden states",
    "native": "lists",
}


def outline(manifest: Mapping[str, Any]) -> str:
    """Samples, tokens, layers, queries, heads and what else is there, as its manifest says them."""
    records, entries = manifest["samples"], manifest["files"]
    layers = sorted({entry["layer"] for entry in entries})
    tokens = [record["tokens"] for record in records]
    asked = [len(record["positions"]) for record in records]
    said = [
        f"{len(records)} sample{'s'[: len(records) != 1]} of {_ranged(tokens)} tokens",
        f"{_ranged(asked)} quer{'y' if max(asked) == 1 else 'ies'}",
        f"layer{'s'[: len(layers) != 1]} {_listed(layers)}",
    ]
    return ", ".join([*said, *_tensors(entries[0].get("tensors", {}))])


def _tensors(said: Mapping[str, str]) -> list[str]:
    """Heads, width and dtype of attention's tensors, or of an indexer's alone, and the other parts."""
    alone = "queries" not in said
    asks, keeps = ("index_queries", "index_keys") if alone else ("queries", "keys")
    if asks not in said or keeps not in said:
        return []
    (kind, q), (_, k) = _read(said[asks]), _read(said[keeps])
    parts = [
        word for name, word in _PARTS.items() if name in said and not (alone and name == keeps)
    ]
    heads = f"{q[1]} index heads" if alone else f"{q[1]} query and {k[1]} KV heads"
    return [f"{heads} of {q[3]}", kind.lower(), *(["index only"] if alone else []), *parts]


def _read(said: str) -> tuple[str, list[int]]:
    kind, shape = said.split(" ", 1)
    return kind, [int(size) for size in re.findall(r"\d+", shape)]


def _ranged(numbers: Sequence[int]) -> str:
    low, high = min(numbers), max(numbers)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _listed(layers: Sequence[int]) -> str:
    first, last = layers[0], layers[-1]
    run = list(layers) == list(range(first, last + 1)) and len(layers) > 2
    return f"{first} to {last}" if run else ", ".join(map(str, layers))
