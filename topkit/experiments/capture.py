"""model + prompts -> Capture: one forward a sample, what attention saw written as it was."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn
from transformers import PreTrainedModel

import topkit
from topkit.errors import InputError
from topkit.experiments import capture_files as files
from topkit.experiments.captures import Capture
from topkit.experiments.digests import tokenizer_digest, weights_digest
from topkit.experiments.layer_tensors import LayerTensors, estimate_bytes
from topkit.experiments.passages import (
    Passage,
    numbers,
    positions_of,
    read_text,
    task_passages,
    text_passages,
)
from topkit.experiments.record import check, record
from topkit.experiments.tasks import Task, make_task

# Tokens of a first, short pass that finds layers and shapes before anything is promised.
SURVEYED = 16


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
) -> Capture | None:
    """Capture a model's attention inputs over the prompts of a task or the tokens of a text file.

    layers: "all", "0,3,5" or numbers. positions: "last:32", "every:64" or numbers; by default the
    question and answer of a task, the last 32 of a text. hidden: hidden states, the query latent
    of MLA, and RoPE as well. A rerun computes what is missing; dry_run says the size alone (None).
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
        from topkit.experiments.models import load

        loaded, tokenizer = load(name, device=device, dtype=dtype)
    if asked is not None:
        source = {"task": repr(asked)}
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
) -> Capture | None:
    """Capture a model's attention inputs over token sequences; see `capture_model`.

    `origin` says where model and tokens are from: a folder of the same origin is gone on with.
    """
    out, console = Path(out), Console(stderr=True, quiet=quiet, highlight=False, soft_wrap=True)
    at = [positions_of(passage, positions) for passage in passages]
    survey = _survey(model, passages, layers, hidden)
    sizes = [survey.bytes(len(x.ids), len(where)) for x, where in zip(passages, at, strict=True)]
    console.print(
        f"{len(passages)} samples of {len(survey.modules)} layers: {sum(sizes)} bytes "
        f"({files.readable(sum(sizes))}) in {out}"
    )
    for note in survey.skipped:
        console.print(f"layer {note['layer']} is left out: {note['reason']}")
    if dry_run:
        return None
    writer = files.Writer(
        out,
        {
            **origin,
            "weights_sha256": weights_digest(model),
            "dtype": str(model.dtype).removeprefix("torch."),
            "layers": sorted(survey.modules),
            "hidden": hidden,
        },
        range(len(passages)),
        force=force,
    )
    records = [
        _describe(n, x, where) for n, (x, where) in enumerate(zip(passages, at, strict=True))
    ]
    missing = [n for n, described in enumerate(records) if not writer.has(described)]
    files.require_space(out, sum(sizes[n] for n in missing))
    for n in track(missing, "capturing", console=console, disable=quiet):
        tensors = _forward(model, n, passages[n], at[n], survey, hidden, first=n == missing[0])
        writer.add(records[n], {layer: x.tensors() for layer, x in tensors.items()})
    writer.close({"layers": survey.layers(), "skipped": survey.skipped, "versions": _versions()})
    return Capture.open(out)


@dataclass(frozen=True)
class Survey:
    """Which layers can be captured: their modules, short tensors of each, and the others."""

    modules: dict[int, nn.Module]
    examples: dict[int, LayerTensors]
    skipped: list[dict[str, Any]]

    def bytes(self, keys: int, queries: int) -> int:
        """What a sample of this many keys and query positions takes."""
        return sum(estimate_bytes(example, keys, queries) for example in self.examples.values())

    def layers(self) -> list[dict[str, Any]]:
        """What the manifest says of each layer."""
        return [
            {"layer": layer, "scaling": example.scaling}
            for layer, example in sorted(self.examples.items())
        ]


def _survey(
    model: PreTrainedModel, passages: Sequence[Passage], asked: str | Sequence[int], hidden: bool
) -> Survey:
    ids = torch.tensor([passages[0].ids[:SURVEYED]])
    at = torch.arange(ids.shape[1])
    seen = record(model, ids, at)
    longest = max(len(passage.ids) for passage in passages)
    reasons = {
        layer: "it does not attend through AttentionInterface"
        for layer in range(model.config.get_text_config().num_hidden_layers)
        if layer not in seen
    }
    for layer, one in seen.items():
        if one.window is not None and one.window < longest:
            reasons[layer] = f"it sees a sliding window of {one.window} keys, not all"
    layers = _chosen_layers(asked, {*seen, *reasons}, reasons, type(model).__name__)
    modules = {layer: seen[layer].module for layer in layers}
    seen = record(model, ids, at, layers, modules if hidden else None)
    examples = {layer: seen[layer].tensors(0, layer, at) for layer in layers}
    return Survey(
        modules, examples, [{"layer": n, "reason": r} for n, r in sorted(reasons.items())]
    )


def _chosen_layers(
    asked: str | Sequence[int], there: set[int], reasons: Mapping[int, str], name: str
) -> list[int]:
    if asked == "all":
        wanted = sorted(there - set(reasons))
        if not wanted:
            raise InputError(f"no layer of {name} can be captured: {next(iter(reasons.values()))}")
        return wanted
    try:
        wanted = sorted(set(numbers(asked) if isinstance(asked, str) else asked))
    except ValueError:
        raise InputError(f"layers must be all, or numbers as 0,3,5; got {asked!r}") from None
    for layer in wanted:
        if layer not in there:
            raise InputError(f"{name} has no layer {layer}; it has {min(there)} to {max(there)}")
        if layer in reasons:
            raise InputError(f"layer {layer} of {name} cannot be captured: {reasons[layer]}")
    return wanted


def _forward(
    model: PreTrainedModel,
    sample: int,
    passage: Passage,
    at: Tensor,
    survey: Survey,
    hidden: bool,
    first: bool,
) -> dict[int, LayerTensors]:
    layers = sorted(survey.modules)
    ids = torch.tensor([list(passage.ids)])
    seen = record(model, ids, at, layers, survey.modules if hidden else None)
    tensors = {}
    for layer in layers:
        tensors[layer] = seen[layer].tensors(sample, layer, at)
        tensors[layer].require_finite()
        if first:
            check(model, layer, seen[layer], at)
    return tensors


def _describe(sample: int, passage: Passage, at: Tensor) -> dict[str, Any]:
    ids = " ".join(str(token) for token in passage.ids)
    return {
        "sample": sample,
        "tokens": len(passage.ids),
        "ids": ids,
        "ids_sha256": hashlib.sha256(ids.encode()).hexdigest(),
        "prompt": passage.text,
        "positions": at.tolist(),
    }


def _versions() -> dict[str, str]:
    return {
        "topkit": topkit.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
