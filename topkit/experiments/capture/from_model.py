"""model + prompts -> Capture: one forward a sample, what attention saw written as it was."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from rich.console import Console
from rich.progress import track
from transformers import PreTrainedModel

import topkit
from topkit.errors import InputError
from topkit.experiments.capture import files
from topkit.experiments.capture.capture import Capture
from topkit.experiments.capture.layers import Survey, survey_layers
from topkit.experiments.capture.prompts import (
    Passage,
    read_text,
    task_passages,
    text_passages,
)
from topkit.experiments.capture.tensors import LayerTensors
from topkit.experiments.model.digests import tokenizer_digest, weights_digest
from topkit.experiments.model.load import load, require_positions
from topkit.experiments.model.record import check
from topkit.experiments.tasks import Task, make_task, task_name


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
    seed: int = 0,
    device: str | None = None,
    dtype: str | None = None,
    force: bool = False,
    dry_run: bool = False,
    quiet: bool = False,
    tokenizer: Any = None,
    on_plan: Callable[[dict[str, Any]], object] = lambda plan: None,
) -> Capture | None:
    """Capture a model's attention inputs over the prompts of a task or the tokens of a text file.

    layers: "all", "0,3,5" or numbers. positions: "last:32", "every:64" or numbers; by default the
    question and answer of a task, the last 32 of a text. hidden: hidden states, the query latent
    of MLA, and RoPE as well. A rerun computes what is missing; dry_run says the size alone (None),
    on_plan is given what is going to be done.
    Raises: InputError for a model that cannot be captured (named, with the reason), a text too
    short, a disk too small, and a folder that holds another capture (unless `force`).
    """
    if samples < 1 or length < 1:
        raise InputError(f"samples and length must be at least 1; got {samples} and {length}")
    if (task is None) == (text is None):
        raise InputError("give either a task or a text file")
    words = "" if text is None else read_text(text)
    asked = make_task(task) if isinstance(task, str) else task
    if isinstance(model, PreTrainedModel):
        loaded, name = model, model.config.name_or_path or type(model).__name__
    else:
        name = str(model)
        loaded, tokenizer = load(name, device=device, dtype=dtype)
    require_positions(loaded, length)
    if asked is not None:
        source = {"task": task_name(asked)}
        passages = task_passages(asked, tokenizer, length, samples, seed)
    else:
        source = {"text_sha256": hashlib.sha256(words.encode()).hexdigest()}
        passages = text_passages(words, tokenizer, length, samples)
    return capture_passages(
        loaded,
        passages,
        out=out,
        origin={
            "model": name,
            "tokenizer_sha256": tokenizer_digest(tokenizer),
            "source": source,
            "length": length,
            "seed": seed,
        },
        layers=layers,
        positions=positions,
        hidden=hidden,
        force=force,
        dry_run=dry_run,
        quiet=quiet,
        on_plan=on_plan,
    )


def capture_passages(
    model: PreTrainedModel,
    passages: Sequence[Passage],
    *,
    out: str | Path,
    origin: Mapping[str, Any],
    layers: str | Sequence[int] = "all",
    positions: str | Sequence[int] | None = None,
    hidden: bool = False,
    force: bool = False,
    dry_run: bool = False,
    quiet: bool = False,
    on_plan: Callable[[dict[str, Any]], object] = lambda plan: None,
) -> Capture | None:
    """Capture a model's attention inputs over token sequences; see `capture_model`.

    `origin` says where model and tokens are from: a folder of the same origin is gone on with.
    """
    out, console = Path(out), Console(stderr=True, quiet=quiet, highlight=False, soft_wrap=True)
    passages = [passage.at(positions) for passage in passages]
    survey = survey_layers(model, passages, layers, hidden)
    sizes = [survey.bytes(passage) for passage in passages]
    console.print(
        f"{len(passages)} samples of {len(survey.modules)} layers: {sum(sizes)} bytes "
        f"({files.readable(sum(sizes))}) in {out}"
    )
    for note in survey.skipped:
        console.print(f"layer {note['layer']} is left out: {note['reason']}")
    plan = {"out": str(out), "samples": len(passages), "layers": sorted(survey.modules)}
    on_plan({**plan, "skipped": survey.skipped, "bytes": sum(sizes)})
    if dry_run:
        return None
    made_from = {
        **origin,
        "weights_sha256": weights_digest(model),
        "dtype": str(model.dtype).removeprefix("torch."),
        "layers": sorted(survey.modules),
        "hidden": hidden,
    }
    writer = files.Writer(out, made_from, range(len(passages)), force=force)
    missing = [n for n, passage in enumerate(passages) if not writer.has(passage.record(n))]
    files.require_space(out, sum(sizes[n] for n in missing))
    for n in track(missing, "capturing", console=console, disable=quiet):
        tensors = _tensors(model, n, passages[n], survey, trusted=n != missing[0])
        writer.add(passages[n].record(n), {layer: x.tensors() for layer, x in tensors.items()})
    writer.close({"layers": survey.layers(), "skipped": survey.skipped, "versions": _versions()})
    return Capture.open(out)


def _tensors(
    model: PreTrainedModel, sample: int, passage: Passage, survey: Survey, trusted: bool
) -> dict[int, LayerTensors]:
    at = torch.tensor(passage.positions)
    tensors = {}
    for layer, seen in survey.run(model, passage.ids, at).items():
        tensors[layer] = LayerTensors.of(seen, sample, layer, at)
        tensors[layer].require_finite()
        if not trusted:
            check(model, layer, seen, at)
    return tensors


def _versions() -> dict[str, str]:
    return {
        "topkit": topkit.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
