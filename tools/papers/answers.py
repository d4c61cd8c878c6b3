"""What models answer, and how well they go on, where recipes choose their keys."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache

import numpy as np

import topkit
from papers.data import LENGTH, Data
from papers.ours import Ours, mean_of, share_of

NEEDLES = 24
TEXTS = 4


@cache
def right(data: Data, recipe: str, k: int, sparse_from: str) -> np.ndarray:
    """Whether each question was answered right, one fact in LENGTH tokens; `dense` for full attention."""
    dense = recipe == "dense"
    table = topkit.evaluate(
        "reference", "niah-single", LENGTH, NEEDLES, () if dense else recipe, () if dense else k,
        dense=dense, sparse_from=sparse_from, observe=False, device="cpu",
        out=data.folder / f"{recipe}-{k}-{sparse_from}",
    )  # fmt: skip
    return np.array(table["score"].to_pylist(), dtype=float) >= 1


def _of_dense(data: Data, recipe: str, k: int, sparse_from: str = "question") -> Ours:
    """Answers right, as a share of those that full attention gives right."""
    dense = right(data, "dense", 0, "question")
    own = right(data, recipe, k, sparse_from)
    return share_of(int((own & dense).sum()), int(dense.sum()))


def quest_passkey(data: Data) -> Ours:
    return _of_dense(data, "quest(page_size=16)", 64)


def streaming_llm_passkey(data: Data) -> Ours:
    return _of_dense(data, "streaming_llm()", 64)


def h2o_passkey(data: Data) -> Ours:
    return _of_dense(data, "h2o()", 64)


def tidaldecode_needle(data: Data) -> Ours:
    return _of_dense(data, "tidaldecode(layers=(2, 4))", 128)


def snapkv_needle(data: Data) -> Ours:
    return _of_dense(data, "snapkv()", 128, "answer")


@cache
def nats(data: Data, recipes: Sequence[str], k: int) -> np.ndarray:
    """Nats a token of running text behind 2,048 tokens [recipes, texts]; of full attention first."""
    table = topkit.evaluate(
        "smollm2", "books:tokens=64", 2048, TEXTS, list(recipes), k, observe=False, device="cpu",
        out=data.folder / f"books-{k}",
    )  # fmt: skip
    rows = table.select(["indexer", "haystack", "nll"]).to_pylist()
    named = ["dense", *(repr(topkit.indexer(recipe)) for recipe in recipes)]
    return np.array([[r["nll"] for r in rows if r["indexer"] == name] for name in named])


def sparq_bits(data: Data) -> Ours:
    dense, sparse = nats(data, ("sparq(channels=0.125, mean_value=False)",), 128)
    return mean_of(sparse / dense)


def streaming_llm_window(data: Data) -> Ours:
    _, window, sinks = nats(data, ("streaming_llm(sink=0)", "streaming_llm(sink=4)"), 256)
    logs = mean_of(window - sinks)
    return Ours(*(math.exp(x) for x in (logs.value, logs.low, logs.high)))


CLAIMS = {
    "quest-passkey": quest_passkey,
    "streaming_llm-passkey": streaming_llm_passkey,
    "h2o-passkey": h2o_passkey,
    "tidaldecode-needle": tidaldecode_needle,
    "snapkv-needle": snapkv_needle,
    "sparq-bits": sparq_bits,
    "streaming_llm-window": streaming_llm_window,
}
