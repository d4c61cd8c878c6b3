"""What models answer, and how well they go on, where recipes choose their keys."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

import topkit
from papers.data import LENGTH, Data
from papers.ours import Ours, mean_of, share_of
from topkit.experiments.runs.cells import Cell
from topkit.experiments.tasks import prompt as make_prompt
from topkit.indexers.budget import Budget

NEEDLES = 24
PROMPTS = 16
# What is asked together: recipes and their budgets.
ASKED = (
    ("quest(page_size=16)", 64),
    ("streaming_llm()", 64),
    ("h2o()", 64),
    ("tidaldecode(layers=(2, 4))", 128),
)
TEXTS = 4


@cache
def right(data: Data) -> dict[str, np.ndarray]:
    """Whether each question was answered right by each recipe, one fact in LENGTH tokens."""
    cells = [Cell(topkit.indexer(text), Budget(k)) for text, k in ASKED]
    table = topkit.evaluate(
        "reference", "niah-single", LENGTH, NEEDLES, cells, observe=False, device="cpu",
        out=data.folder / "needles",
    )  # fmt: skip
    found = table.select(["indexer", "haystack", "score"]).to_pylist()
    found.sort(key=lambda row: row["haystack"])
    names = {row["indexer"] for row in found}
    return {n: np.array([r["score"] >= 1 for r in found if r["indexer"] == n]) for n in names}


def _of_dense(data: Data, recipe: str) -> Ours:
    """Answers right, as a share of those that full attention gives right."""
    dense, own = right(data)["dense"], right(data)[repr(topkit.indexer(recipe))]
    return share_of(int((own & dense).sum()), int(dense.sum()))


def quest_passkey(data: Data) -> Ours:
    return _of_dense(data, "quest(page_size=16)")


def streaming_llm_passkey(data: Data) -> Ours:
    return _of_dense(data, "streaming_llm()")


def h2o_passkey(data: Data) -> Ours:
    return _of_dense(data, "h2o()")


def tidaldecode_needle(data: Data) -> Ours:
    return _of_dense(data, "tidaldecode(layers=(2, 4))")


def _of_prompts(recipe: str, k: int) -> Ours:
    """Of prompts that hold their question, whose last queries vote: `evaluate` would build on the haystack."""
    model, tokenizer = topkit.load("reference", device="cpu")
    task, dense, own = topkit.task("niah-single"), 0, 0
    for sample in range(PROMPTS):
        prompt = make_prompt(task, tokenizer, LENGTH, sample, seed=0)
        question = prompt.questions[0]
        ids, answer = torch.tensor([[*prompt.ids, *question.ids]]), list(question.answer_ids)
        if _says(model, ids, answer):
            dense += 1
            with topkit.attach(model, recipe, k):
                own += _says(model, ids, answer)
    return share_of(own, dense)


def _says(model: Any, ids: Tensor, answer: list[int]) -> bool:
    """Whether greedy decoding behind a prompt [1, T] gives the answer."""
    said = model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False,
        max_new_tokens=len(answer),
    )  # fmt: skip
    return said[0, ids.shape[1] :].tolist() == answer


def snapkv_needle(data: Data) -> Ours:
    return _of_prompts("snapkv()", 128)


def snapkv_setting(data: Data) -> Ours:
    return _of_prompts("snapkv(window=64, kernel=13)", 128)


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
    "snapkv-setting": snapkv_setting,
    "sparq-bits": sparq_bits,
    "streaming_llm-window": streaming_llm_window,
}
