"""Held-out scores of a model, dense: what it can do before any key is dropped."""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from topkit.experiments.model.load import load, named, require_positions
from topkit.experiments.runs.jobs import Job
from topkit.experiments.runs.parts import write_whole
from topkit.experiments.runs.runners import crew
from topkit.experiments.tasks import TASKS, Prompt, Task, make_task
from topkit.experiments.tasks.base import HELD_OUT, TRAINED

# Name of a row -> task and its parameters.
ROWS: dict[str, tuple[str, dict[str, Any]]] = {
    "niah, 1 key": ("niah-single", {}),
    "niah, 16 keys": ("niah-multikey", {"distractors": 12}),
    "niah, 64 keys": ("niah-multikey", {"distractors": 60}),
    "multi-value, 4 values": ("niah-multivalue", {}),
    "multi-query, 4 keys": ("niah-multiquery", {}),
    "variable tracking, direct": ("variable-tracking", {"hops": 1}),
    "variable tracking, 2 hops": ("variable-tracking", {"hops": 2}),
    "key-value recall, 96 pairs": ("kv-recall", {}),
    "recite, 140 words": ("recite", {}),
    "niah, 16 keys, word values": ("niah-word", {}),
}


@dataclass(frozen=True, eq=False)
class Row:
    """One line of the scores: a task, its wording (trained, held-out or any) and a length."""

    name: str
    task: str
    parameters: dict[str, Any]
    wording: str
    length: int

    def made(self) -> Task:
        free = {} if "plain" in TASKS[self.task]().wordings() else {"wording": self.wording}
        return make_task(self.task, **free, **self.parameters)


def rows(lengths: Sequence[int]) -> list[Row]:
    """Every line at every length; tasks with wordings absent from training have two."""
    lines = []
    for name, (task, parameters) in ROWS.items():
        kinds = [TRAINED, HELD_OUT] if HELD_OUT in TASKS[task]().wordings().values() else ["any"]
        if TASKS[task].family == HELD_OUT:
            kinds = ["any"]
        lines += [Row(name, task, parameters, kind, length) for length in lengths for kind in kinds]
    return lines


@torch.no_grad()
def exact_match(model: Any, prompt: Prompt) -> bool:
    """Whether the first question's answer is what the model, dense, says greedily.

    Judged in one pass over haystack, question and answer: greedy decoding gives the answer exactly
    when every token of it is the likeliest after those before it.
    """
    question = prompt.questions[0]
    ids = torch.tensor([[*prompt.ids, *question.ids, *question.answer_ids]], device=model.device)
    answer = len(question.answer_ids)
    logits = _logits(model, ids, answer)
    return bool((logits[0].argmax(-1) == ids[0, -answer:]).all())


def perplexity(model: Any, ids: Tensor, length: int = 4096) -> float:
    """exp of the mean NLL of a long text, cut into pieces of `length` tokens, each from its start."""
    pieces = ids[: len(ids) // length * length].view(-1, length)
    total = 0.0
    for piece in pieces:
        logits = _logits(model, piece[None].to(model.device), length - 1)[0].float()
        total += torch.nn.functional.cross_entropy(logits, piece[1:].to(model.device)).item()
    return math.exp(total / len(pieces))


@torch.no_grad()
def _logits(model: Any, ids: Tensor, last: int) -> Tensor:
    """The predictions of the last `last` tokens [B, last, V]."""
    return model(ids, use_cache=False, logits_to_keep=last + 1).logits[:, :-1]


def interval(hits: int, count: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share of independent prompts."""
    z, share = 1.959964, hits / count
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(share * (1 - share) / count + (z / (2 * count)) ** 2)
    return max(0.0, middle - half), min(1.0, middle + half)


def score_model(
    model: str | Path = "reference",
    *,
    lengths: Sequence[int] = (4096, 8192),
    prompts: int = 200,
    seed: int = 1,
    corpus: Path | str | None = None,
    device: str | None = None,
    jobs: int = 1,
    report: Callable[[str], object] = print,
) -> dict[str, Any]:
    """Exact match on every row of ROWS, trained and held-out wordings apart, with intervals.

    One question a haystack, so that no two share one. With a corpus, the perplexity on its
    validation books as well.
    """
    loaded, tokenizer = _loaded(named(model), device)
    require_positions(loaded, max(lengths))
    shares = [
        (row, range(first, min(first + _SHARE, prompts)))
        for row in rows(lengths)
        for first in range(0, prompts, _SHARE)
    ]
    planned = [
        Job({}, (n, named(model), device, row, samples, seed))
        for n, (row, samples) in enumerate(shares)
    ]
    hits: dict[Row, int] = dict.fromkeys((row for row, _ in shares), 0)  # type: ignore[arg-type]
    for n, right in crew(jobs=jobs).runner(_count, planned):
        hits[shares[n][0]] += right
    table = []
    for row, right in hits.items():
        low, high = interval(right, prompts)
        table.append(
            {
                "row": row.name,
                "task": row.task,
                **row.parameters,
                "family": TASKS[row.task].family,
                "wording": row.wording,
                "length": row.length,
                "exact_match": right / prompts,
                "interval": [round(low, 4), round(high, 4)],
                "prompts": prompts,
            }
        )
        report(
            f"{row.name:28s} {row.wording:9s} {row.length:5d}: {right / prompts:.3f} "
            f"[{low:.3f}, {high:.3f}] of {prompts}"
        )
    result: dict[str, Any] = {"rows": table, "seed": seed, **_machine(loaded)}
    if corpus is not None:
        result["perplexity"] = _perplexities(loaded, tokenizer, corpus)
        report(f"perplexity {result['perplexity']}")
    return result


# Prompts of one job.
_SHARE = 50


@lru_cache(maxsize=1)
def _loaded(model: str, device: str | None) -> tuple[Any, Any]:
    return load(model, device)


def _count(
    number: int, name: str, device: str | None, row: Row, samples: range, seed: int
) -> tuple[int, int]:
    model, tokenizer = _loaded(name, device)
    task = row.made()
    prompts = (task.sample(tokenizer, row.length, sample, seed=seed) for sample in samples)
    return number, sum(exact_match(model, prompt) for prompt in prompts)


def _perplexities(model: Any, tokenizer: Any, corpus: Path | str) -> dict[str, float]:
    from topkit.experiments.train.corpus import books

    by_title = {}
    for book in books(corpus, "valid"):
        ids = torch.tensor(tokenizer(book["text"], add_special_tokens=False)["input_ids"])
        by_title[book["title"]] = round(perplexity(model, ids), 3)
    return by_title


def _machine(model: Any) -> dict[str, Any]:
    import transformers

    gpu = torch.cuda.get_device_name() if model.device.type == "cuda" else "none"
    return {
        "dtype": str(model.dtype),
        "gpu": gpu,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
    }


def write_scores(path: Path, result: dict[str, Any]) -> None:
    text = json.dumps(result, indent=1) + "\n"
    write_whole(path, lambda to: to.write_text(text, encoding="utf-8"))
