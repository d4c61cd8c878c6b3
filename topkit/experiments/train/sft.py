"""Supervised fine-tuning of a model with Top-k or with dense attention, all else alike."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict
from fractions import Fraction
from pathlib import Path
from shutil import rmtree
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from topkit.documents import quote
from topkit.errors import InputError
from topkit.experiments.model.digests import weights_digest
from topkit.experiments.model.load import load, require_positions, silence
from topkit.experiments.runs.parts import write_whole
from topkit.experiments.train.checkpoint import Checkpoints
from topkit.experiments.train.corpus import corpus_digest
from topkit.experiments.train.deadline import Deadline
from topkit.experiments.train.difference import apply_difference, save_difference
from topkit.experiments.train.loop import PASS, Loop
from topkit.experiments.train.mixture import ANSWER, Mixture
from topkit.experiments.train.prepared import prepared, weighted
from topkit.experiments.train.recipe import Sft
from topkit.experiments.train.train import optimizer_of
from topkit.experiments.train.trained_attention import require_trainable, training_attention

ATTENTIONS = ("dense", "topk")
RECIPE, DONE = "recipe.json", "done.json"


def train_sft(
    model: str | Path,
    corpus: Path | str | None,
    out: Path | str,
    *,
    attention: str = "topk",
    ratio: Any = None,
    recipe: Sft | None = None,
    device: str = "cpu",
    workers: int = 0,
    stop_after: float = math.inf,
    books: int | None = None,
    tokens: Path | None = None,
    report: Callable[[str], object] = print,
) -> bool:
    """Fine-tune a model on the training mixture, books with facts and questions woven in; goes on where it stopped.

    attention: "topk", each query to its ceil(ratio x visible) best keys, or "dense". ratio: 0.01 or "1%".
    Whatever the attention, equal recipes read the same batches in the same order. books: how many of the
    corpus are read (None: all); without a corpus the bundled excerpt, which is for trying. tokens: a folder in which
    several trainings share those of the corpus; by default out. The training sees other draws of the mixture than the reference model's own.
    Files: out/model (a folder that every command takes as MODEL), out/difference/NAME-HASH.safetensors,
    text, training_log.csv, recipe.json, and until the end checkpoints/. Returns whether the recipe's end was reached.
    Raises: InputError for a ratio outside (0, 1], a model whose attention cannot be trained so, a folder that
    was begun with another recipe, and a loss that is no number.
    """
    name, out, deadline = str(model), Path(out), Deadline.within(stop_after)
    recipe = recipe or Sft.of(name)
    share = ratio_of(attention, ratio)
    loaded, tokenizer = _clean(*load(model, device, "float32"))
    require_positions(loaded, recipe.length)
    if share is not None:
        require_trainable(loaded, share)
    start = {n: x.detach().cpu().to(torch.bfloat16) for n, x in loaded.state_dict().items()}
    told = _told(name, loaded, attention, share, recipe, corpus, books)
    _begin(out, told)
    if (out / DONE).exists():
        return True
    mixture = prepared(name, tokenizer, corpus, tokens or out, recipe.seed, books, deadline)
    if mixture is None:
        return False
    loaded.train()
    with training_attention(loaded, share, recipe.least):
        done = Loop(
            steps=recipe.steps,
            batches=lambda first: _batches(mixture, recipe, first, workers),
            losses_of=weighted_loss,
            rate_of=recipe.rate,
            checkpoints=Checkpoints(out / "checkpoints", report),
            log=out / "training_log.csv",
            # A CPU has bf16 products slower than float32.
            autocast=torch.bfloat16 if loaded.device.type == "cuda" else None,
            most=PASS if loaded.device.type == "cpu" else None,
        ).run(loaded, optimizer_of(loaded, recipe.peak, recipe.weight_decay), deadline.left)
    if done:
        _save(loaded, tokenizer, start, told, out, report)
        # Three times the weights, and of no use any more.
        rmtree(out / "checkpoints", ignore_errors=True)
    return done


def rebuild(model: str | Path, difference: Path | str, out: Path | str) -> Path:
    """Write the model of a difference, on the model that training began from, as a folder.

    Raises: InputError for what is no difference, and for another model's.
    """
    loaded, tokenizer = _clean(*load(model, "cpu", "bfloat16"))
    apply_difference(loaded, difference)
    _write(loaded, tokenizer, Path(out))
    return Path(out)


def ratio_of(attention: str, ratio: Any) -> Fraction | None:
    """The share of visible keys that queries keep, exactly; None for dense attention.

    Raises: InputError for another attention, one that lacks a ratio or has none, and a ratio outside (0, 1].
    """
    if attention not in ATTENTIONS:
        raise InputError(f"attention must be topk or dense; got {quote(attention)}")
    if attention == "dense":
        if ratio is not None:
            raise InputError("dense attention keeps all keys; a ratio is of --attention topk")
        return None
    if ratio is None:
        raise InputError("Top-k attention needs a ratio, the share of keys kept, as 1% or 0.01")
    text = str(ratio).strip()
    try:
        share = Fraction(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except (ValueError, ZeroDivisionError):
        raise InputError(
            f"ratio must be a number or per cent, as 0.01 or 1%; got {quote(text)}"
        ) from None
    if not 0 < share <= 1:
        raise InputError(f"ratio must lie in (0, 1], as 0.01 or 1%; got {quote(text)}")
    return share


def weighted_loss(model: Any, ids: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """The weighted mean NLL of ids[:, 1:], and the plain mean over the answers."""
    logits = model(input_ids=ids[:, :-1], use_cache=False).logits.float()
    losses = cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
    weights = weights[:, 1:].flatten()
    answers = (weights == ANSWER).float()
    answer = (losses.detach() * answers).sum() / answers.sum().clamp_min(1)
    return (losses * weights).sum() / weights.sum(), answer


def _batches(
    mixture: Mixture, recipe: Sft, first: int, workers: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    return weighted(mixture, range(first, recipe.steps), recipe.rows, recipe.length, workers)


def _told(
    name: str,
    model: Any,
    attention: str,
    share: Fraction | None,
    recipe: Sft,
    corpus: Path | str | None,
    books: int | None,
) -> dict[str, Any]:
    """What recipe.json says: all that decides the weights."""
    return {
        "model": name,
        "weights": weights_digest(model, torch.bfloat16),
        "attention": attention,
        "ratio": None if share is None else str(share),
        "corpus": corpus_digest(corpus),
        "books": books,
        **asdict(recipe),
    }


def _begin(out: Path, told: dict[str, Any]) -> None:
    path, text = out / RECIPE, json.dumps(told, indent=1) + "\n"
    if path.exists() and path.read_text() != text:
        raise InputError(f"{out} was begun with another recipe; choose another folder")
    write_whole(path, lambda to: to.write_text(text))


def _clean(model: Any, tokenizer: Any) -> tuple[Any, Any]:
    """A model that can be saved: of one that was read from packed blocks, its weights in a plain one."""
    config = model.config
    if getattr(config, "quantization_config", None) is None and not hasattr(model, "hf_quantizer"):
        return model, tokenizer
    plain = type(config).from_dict(
        {k: v for k, v in config.to_dict().items() if k != "quantization_config"}
    )
    made = type(model)(plain).to(model.device, model.dtype)
    made.load_state_dict(model.state_dict())
    made.generation_config = model.generation_config
    made.tie_weights()
    return made.eval(), tokenizer


def _write(model: Any, tokenizer: Any, folder: Path) -> None:
    with silence():
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def _save(
    model: Any,
    tokenizer: Any,
    start: dict[str, Tensor],
    told: dict[str, Any],
    out: Path,
    report: Callable[[str], object],
) -> None:
    """The folder in bf16, and the difference."""
    _write(model.eval().to(torch.bfloat16), tokenizer, out / "model")
    short = f"{Path(told['model']).stem}-{told['attention']}"
    said = {"kind": "difference", "starts": json.dumps([told["weights"]]), **told}
    path, error = save_difference(start, model, out / "difference", short, **said)
    # Last: whoever finds it finds all.
    about = {"difference": path.name, "bytes": path.stat().st_size, "error": error}
    write_whole(out / DONE, lambda to: to.write_text(json.dumps(about) + "\n"))
    report(f"{path}: {path.stat().st_size:,} bytes, off by {error:.3f} of the difference")
