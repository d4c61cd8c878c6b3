"""Training the reference model: one GPU, about ten minutes."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn.functional import cross_entropy

from topkit.errors import InputError
from topkit.experiments.runs.parts import write_whole
from topkit.experiments.tasks.request import random_for
from topkit.experiments.train.checkpoint import Checkpoints, load_weights
from topkit.experiments.train.corpus import books, keep_tokens, require_books
from topkit.experiments.train.deadline import NEVER, Deadline
from topkit.experiments.train.loop import PASS, Loop
from topkit.experiments.train.mixture import ANSWER, Mixture
from topkit.experiments.train.recipe import Recipe, new_model
from topkit.experiments.train.tokenizer import save_tokenizer, train_tokenizer
from topkit.experiments.train.world import World


def prepare(
    corpus: Path,
    out: Path,
    recipe: Recipe,
    start_from: Path | str | None = None,
    deadline: Deadline = NEVER,
) -> bool:
    """Make the tokenizer and the tokens of the training books, once, in `out`; whether they are there.

    Where time ran out before, a further call goes on.
    """
    folder = out / "text"
    if (folder / "ends.npy").exists():
        return True
    made = folder / "tokenizer.json"
    if not made.exists():
        tokenizer = _tokenizer(corpus, recipe, start_from)
        write_whole(made, lambda to: to.write_text(tokenizer.to_str(), encoding="utf-8"))
    tokenizer = Tokenizer.from_file(str(made))
    save_tokenizer(tokenizer, out / "model")
    texts = (book["text"] for book in books(corpus, "train"))
    return keep_tokens(texts, tokenizer, folder, deadline) and not deadline.passed


def _tokenizer(
    corpus: Path, recipe: Recipe, start_from: Path | str | None, sample: int = 40
) -> Tokenizer:
    """Learnt from some books and what tasks plant, or that of the model to start from."""
    if start_from is not None:
        return Tokenizer.from_file(str(Path(start_from) / "tokenizer.json"))
    texts = [book["text"][:150_000] for book in islice(books(corpus, "train"), sample)]
    rng = random_for("tokenizer", recipe.seed)
    return train_tokenizer([*texts, *_examples(rng)], recipe.vocabulary)


def _examples(rng: np.random.Generator) -> Iterator[str]:
    """Some of what tasks plant and ask, so that their words are short in tokens."""
    from topkit.experiments.tasks import TASKS
    from topkit.experiments.tasks.base import TRAINED

    for task in (t() for t in TASKS.values() if t.family == TRAINED and t.name != "books"):
        trained = [w for w, kind in task.wordings().items() if kind == TRAINED]
        for _ in range(20):
            planted = task.plant(rng, str(rng.choice(trained)))
            yield " ".join(planted.sentences) + "".join(
                q.text + q.answer for q in planted.questions
            )


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
    hidden = model.model(input_ids=ids[:, :-1], use_cache=False).last_hidden_state
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
