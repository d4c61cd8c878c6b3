"""Training the reference model: one GPU, about ten minutes."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import cross_entropy

from topkit.errors import InputError
from topkit.experiments.runs.parts import write_whole
from topkit.experiments.train.checkpoint import Checkpoints, load_weights
from topkit.experiments.train.corpus import require_books
from topkit.experiments.train.deadline import Deadline
from topkit.experiments.train.loop import PASS, Loop
from topkit.experiments.train.mixture import ANSWER, Mixture
from topkit.experiments.train.recipe import Recipe, new_model
from topkit.experiments.train.reference_text import prepare
from topkit.experiments.train.world import World


def batches(mixture: Mixture, recipe: Recipe, start: int, workers: int) -> Iterator[tuple]:
    """Batch after batch from step `start`, made ahead by other processes."""
    plans = [
        (mixture, step, recipe.phase(step).rows, recipe.phase(step).length)
        for step in range(start, recipe.steps)
    ]
    if workers == 0 or not plans:
        yield from map(_make, plans)
        return
    with get_context("spawn").Pool(workers) as pool:
        yield from pool.imap(_make, plans)


def _make(plan: tuple) -> tuple[np.ndarray, np.ndarray]:
    mixture, step, rows, length = plan
    ids, weights = mixture.batch(step, rows, length)
    return ids, weights.astype(np.float16)


def redraw_digits(model: Any, digits: np.ndarray, seed: int) -> None:
    """Give the digits embeddings that stand as far apart as other tokens' do."""
    table = model.get_input_embeddings().weight.data
    draw = torch.randn(len(digits), table.shape[1], generator=torch.Generator().manual_seed(seed))
    length = table.float().norm(dim=-1).mean().cpu()
    table[torch.from_numpy(digits)] = (draw / draw.norm(dim=-1, keepdim=True) * length).to(table)


def weighted_loss(model: Any, ids: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """The weighted mean NLL of ids[:, 1:], and the plain mean over the answers."""
    # No mask, said for each kind of layer: in a function that is compiled transformers would make one [T, T], and
    # attention by a mask takes more than twice as long as causal attention.
    plain = dict.fromkeys(model.config.layer_types)
    hidden = model.model(
        input_ids=ids[:, :-1], attention_mask=plain, use_cache=False
    ).last_hidden_state
    logits = model.lm_head(hidden).float()
    losses = cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
    weights = weights[:, 1:].flatten()
    answers = (weights == ANSWER).float()
    answer = (losses.detach() * answers).sum() / answers.sum().clamp_min(1)
    return (losses * weights).sum() / weights.sum(), answer


def train_reference(
    corpus: Path | str,
    out: Path | str,
    *,
    recipe: Recipe | None = None,
    start_from: Path | str | None = None,
    device: str = "cuda",
    workers: int = 14,
    stop_after: float = math.inf,
    report: Callable[[str], object] = print,
) -> bool:
    """Train to the recipe's end, or for `stop_after` seconds from the call on; a further call goes on from there.

    Whatever the time, a call makes some of the books' tokens, or takes a step.

    `start_from` is the folder of a model whose weights and tokenizer training goes on with, its
    digits' embeddings drawn anew.
    Files: out/model (Hugging Face format, bf16, once done), training_log.csv, recipe.json,
    checkpoints/. Returns whether the recipe's end was reached. Processes that torchrun started share each batch.
    Raises: InputError when there is no such GPU or corpus, `out` was begun with another recipe, or the model to
    start from has another shape.
    """
    deadline = Deadline.within(stop_after)
    recipe, out, world = recipe or Recipe(), Path(out), World.joined(device)
    report = world.said_by(report)
    _check(out, recipe, start_from, device)
    require_books(corpus, "train")
    late = False
    if world.first:
        write_whole(out / "recipe.json", lambda to: to.write_text(_text(recipe)))
        late = not prepare(Path(corpus), out, recipe, start_from, deadline)
    if world.agreed(late, torch.device(device)):
        return False
    tokenizer = (out / "model" / "tokenizer.json").read_text()
    mixture = Mixture(out / "text", tokenizer, recipe.seed)
    model = _first(recipe, mixture, start_from).to(device).train()
    compiled = torch.compile(weighted_loss, dynamic=False) if device == "cuda" else weighted_loss
    done = Loop(
        steps=recipe.steps,
        batches=lambda start: batches(mixture, recipe, start, workers),
        losses_of=compiled,
        rate_of=recipe.rate,
        checkpoints=Checkpoints(out / "checkpoints", report),
        log=out / "training_log.csv",
        world=world,
        autocast=torch.bfloat16 if device.startswith("cuda") else None,
        most=PASS if device == "cpu" else None,
    ).run(model, optimizer_of(model, recipe.peak, recipe.weight_decay), deadline.left)
    # A call after the end comes straight here, in case this was cut off.
    if done and world.first:
        model.to(torch.bfloat16).save_pretrained(out / "model")
    world.wait()
    return done


def _check(out: Path, recipe: Recipe, start_from: Path | str | None, device: str) -> None:
    if start_from is not None:
        for name in ("tokenizer.json", "model.safetensors"):
            if not (Path(start_from) / name).is_file():
                raise InputError(f"no model to start from at {start_from}: it lacks {name}")
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("training asks for a CUDA GPU and there is none; use --tiny --device cpu")
    begun = out / "recipe.json"
    if begun.exists() and begun.read_text() != _text(recipe):
        raise InputError(f"{out} was begun with another recipe; choose another folder")


def _text(recipe: Recipe) -> str:
    return json.dumps(asdict(recipe), indent=1)


def _first(recipe: Recipe, mixture: Mixture, start_from: Path | str | None) -> Any:
    """The model that training starts from."""
    model = new_model(recipe)
    if start_from is not None:
        path = Path(start_from) / "model.safetensors"
        weights = load_file(path)
        # Tied to the embeddings, the head is in no file.
        load_weights(
            model, {"lm_head.weight": weights["model.embed_tokens.weight"], **weights}, str(path)
        )
        redraw_digits(model, mixture.digits, recipe.seed)
    return model


def optimizer_of(model: Any, rate: float, decay: float) -> torch.optim.AdamW:
    """AdamW whose decay is of matrices alone."""
    wide = [p for p in model.parameters() if p.dim() > 1]
    narrow = [p for p in model.parameters() if p.dim() <= 1]
    groups = [
        {"params": wide, "weight_decay": decay},
        {"params": narrow, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.95))
