"""Held-out scores of a model, dense: what it can do before any key is dropped."""

from __future__ import annotations

import copy
import json
import math
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from topkit.experiments.tasks import TASKS, Prompt, make_task
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


@torch.no_grad()
def exact_matches(model: Any, prompt: Prompt) -> list[bool]:
    """Whether each question's answer is what the model, dense, says greedily.

    Judged in one pass over question and answer: greedy decoding gives the answer exactly when every
    token of it is the likeliest after those before it.
    """
    haystack = torch.tensor([prompt.ids], device=model.device)
    read = model(haystack, use_cache=True, logits_to_keep=1).past_key_values
    hits = []
    for question in prompt.questions:
        asked = torch.tensor([[*question.ids, *question.answer_ids]], device=model.device)
        answer = len(question.answer_ids)
        out = model(asked, past_key_values=copy.deepcopy(read), logits_to_keep=answer + 1)
        hits.append(bool((out.logits[0, :-1].argmax(-1) == asked[0, -answer:]).all()))
    return hits


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
    """Wilson's 95 % interval of a share; questions are counted as independent."""
    z, share = 1.959964, hits / count
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(share * (1 - share) / count + (z / (2 * count)) ** 2)
    return middle - half, middle + half


def score_model(
    model: Any,
    tokenizer: Any,
    *,
    lengths: Sequence[int] = (4096, 8192),
    prompts: int = 200,
    seed: int = 1,
    corpus: Path | str | None = None,
    report: Any = print,
) -> dict[str, Any]:
    """Exact match on every row of ROWS, trained and held-out wordings apart, with intervals."""
    rows = []
    for row, (name, parameters) in ROWS.items():
        kinds = [TRAINED]
        if HELD_OUT in TASKS[name]().wordings().values() and TASKS[name].family == TRAINED:
            kinds.append(HELD_OUT)
        for length in lengths:
            for kind in kinds:
                hits = _row(model, tokenizer, name, parameters, kind, length, prompts, seed)
                low, high = interval(sum(hits), len(hits))
                rows.append(
                    {
                        "row": row,
                        "task": name,
                        **parameters,
                        "family": HELD_OUT if TASKS[name].family == HELD_OUT else TRAINED,
                        "wording": kind,
                        "length": length,
                        "exact_match": sum(hits) / len(hits),
                        "interval": [round(low, 4), round(high, 4)],
                        "questions": len(hits),
                    }
                )
                report(
                    f"{row:28s} {kind:9s} {length:5d}: {rows[-1]['exact_match']:.3f} "
                    f"[{low:.3f}, {high:.3f}] of {len(hits)}"
                )
    result: dict[str, Any] = {"rows": rows, **_machine(model)}
    if corpus is not None:
        result["perplexity"] = _perplexities(model, tokenizer, corpus)
        report(f"perplexity {result['perplexity']}")
    return result


def _row(
    model: Any,
    tokenizer: Any,
    name: str,
    parameters: dict,
    kind: str,
    length: int,
    prompts: int,
    seed: int,
) -> list[bool]:
    each = TASKS[name]().questions
    task = make_task(name, wording=kind if TASKS[name].family == TRAINED else "any", **parameters)
    if "plain" in task.wordings():
        task = make_task(name, **parameters)
    hits: list[bool] = []
    for sample in range(-(-prompts // each)):
        hits += exact_matches(model, task.sample(tokenizer, length, sample, seed=seed))
    return hits


def _perplexities(model: Any, tokenizer: Any, corpus: Path | str) -> dict[str, float]:
    from topkit.experiments.reference.corpus import books

    found = {}
    for book in books(corpus, "valid"):
        ids = torch.tensor(tokenizer(book["text"], add_special_tokens=False)["input_ids"])
        found[book["title"]] = round(perplexity(model, ids), 3)
    return found


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
    path.write_text(json.dumps(result, indent=1) + "\n")
