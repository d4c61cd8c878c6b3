"""model + prompts -> Capture: one forward pass a sample; what attention saw is written unchanged."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from topkit.documents import path_of
from topkit.errors import InputError
from topkit.experiments.capture.capture import Capture
from topkit.experiments.capture.layers import survey_layers
from topkit.experiments.capture.plan import Request, plan_of
from topkit.experiments.capture.prompts import (
    Passage,
    read_text,
    task_passages,
    text_passages,
)
from topkit.experiments.model.digests import config_digest, tokenizer_digest, weights_digest
from topkit.experiments.model.load import load, named, origin_of, require_positions
from topkit.experiments.model.own_indexer import own_identity
from topkit.experiments.runs.plan import Plan, planned
from topkit.experiments.tasks import Task, make_task, task_name


@planned
def capture_model(
    model: str | Path | PreTrainedModel,
    *,
    task: str | Task | None = None,
    text: str | Path | None = None,
    length: int,
    samples: int,
    out: str | Path,
    layers: str | Sequence[int] = "all",
    positions: str | Sequence[int] | None = None,
    hidden: bool = False,
    prefill_queries: int | str = 0,
    seed: int = 0,
    device: str | None = None,
    dtype: str | None = None,
    force: bool = False,
    tokenizer: Any = None,
) -> Plan[Capture]:
    """Capture a model's attention inputs over the prompts of a task or the tokens of a text file.

    layers: "all", "0,3,5" or numbers. positions: "last:32", "every:64" or numbers; by default the
    question and answer of a task, the last 32 of a text. hidden: hidden states, the query latent
    of MLA, and RoPE as well. prefill_queries: also those of the last so many tokens before the first
    position, or "all". A rerun computes what is missing.
    Raises: InputError for a model that cannot be captured (named, with the reason), a text too
    short, a disk too small, and a folder that holds another capture (unless `force`).
    """
    if samples < 1 or length < 1:
        raise InputError(f"samples and length must be at least 1; got {samples} and {length}")
    if (task is None) == (text is None):
        raise InputError("give either a task or a text file")
    # What cannot be read is refused before the model is loaded.
    words = "" if text is None else read_text(text)
    made = make_task(task) if isinstance(task, str) else task
    if isinstance(model, PreTrainedModel):
        loaded, name = model, model.config.name_or_path or type(model).__name__
    else:
        name = named(model)
        loaded, tokenizer = load(name, device=device, dtype=dtype)
    require_positions(loaded, length)
    if made is not None:
        source = {"task": task_name(made)}
        passages = task_passages(made, tokenizer, length, samples, seed)
    else:
        source = {"text_sha256": hashlib.sha256(words.encode()).hexdigest()}
        passages = text_passages(words, tokenizer, length, samples)
    origin = {
        "model": name,
        **origin_of(loaded),
        "tokenizer_sha256": tokenizer_digest(tokenizer),
        "source": source,
        "length": length,
        "seed": seed,
    }
    return capture_passages.plan(
        loaded,
        passages,
        out=out,
        origin=origin,
        layers=layers,
        positions=positions,
        hidden=hidden,
        prefill_queries=prefill_queries,
        force=force,
    )


@planned
def capture_passages(
    model: PreTrainedModel,
    passages: Sequence[Passage],
    *,
    out: str | Path,
    origin: Mapping[str, Any],
    layers: str | Sequence[int] = "all",
    positions: str | Sequence[int] | None = None,
    hidden: bool = False,
    prefill_queries: int | str = 0,
    force: bool = False,
) -> Plan[Capture]:
    """Capture a model's attention inputs over token sequences; see `capture_model`.

    `origin` says where model and tokens are from: a folder of the same origin is continued.
    """
    passages = [passage.at(positions).behind(prefill_queries) for passage in passages]
    survey = survey_layers(model, passages, layers, hidden)
    origin = {
        **origin,
        "weights_sha256": weights_digest(model),
        **own_identity(model),
        "config_sha256": config_digest(model),
        "dtype": str(model.dtype).removeprefix("torch."),
        "layers": sorted(survey.modules),
        "hidden": hidden,
        # Captures of before there were any go on.
        **({} if str(prefill_queries) == "0" else {"prefill_queries": str(prefill_queries)}),
    }
    return plan_of(
        Request(
            model, survey, tuple(passages), path_of(out, "a folder for the capture"), origin, force
        )
    )
