"""Training the reference model: one GPU, about ten minutes."""

from __future__ import annotations

import csv
import json
import math
import time
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
from topkit.experiments.tasks.request import random_for
from topkit.experiments.train.corpus import books, tokenise
from topkit.experiments.train.mixture import ANSWER, Mixture
from topkit.experiments.train.recipe import Recipe, new_model
from topkit.experiments.train.tokenizer import save_tokenizer, train_tokenizer


def prepare(
    corpus: Path, out: Path, recipe: Recipe, start_from: Path | str | None = None, sample: int = 40
) -> Mixture:
    """The tokenizer and the tokens of the training books, made once in `out`."""
    folder = out / "text"
    if not (folder / "ends.npy").exists():
        if start_from is None:
            rng = random_for("tokenizer", recipe.seed)
            texts = [book["text"][:150_000] for book in islice(books(corpus, "train"), sample)]
            tokenizer = train_tokenizer([*texts, *_examples(rng)], recipe.vocabulary)
        else:
            tokenizer = Tokenizer.from_file(str(Path(start_from) / "tokenizer.json"))
        save_tokenizer(tokenizer, out / "model")
        tokenise((book["text"] for book in books(corpus, "train")), tokenizer).save(folder)
    return Mixture(folder, (out / "model" / "tokenizer.json").read_text(), recipe.seed)


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
    """Train to the recipe's end, or for `stop_after` seconds; a further call goes on from there.

    `start_from` is the folder of a model whose weights and tokenizer training goes on with, its
    digits' embeddings drawn anew.
    Files: out/model (Hugging Face format, bf16, once done), training_log.csv, recipe.json,
    checkpoint.pt. Returns whether the recipe's end was reached.
    Raises: InputError when there is no such GPU or corpus, or `out` was begun with another recipe.
    """
    recipe, out = recipe or Recipe(), Path(out)
    _check(out, recipe, start_from, device)
    mixture = prepare(Path(corpus), out, recipe, start_from)
    (out / "recipe.json").write_text(_text(recipe))
    model = _first(recipe, mixture, start_from).to(device).train()
    optimizer = _optimizer(model, recipe)
    start = _resume(out / "checkpoint.pt", model, optimizer, device)
    loss_of = torch.compile(weighted_loss, dynamic=False) if device == "cuda" else weighted_loss
    began, log = time.monotonic(), _Log(out / "training_log.csv", report)
    for step, batch in enumerate(batches(mixture, recipe, start, workers), start):
        losses = _update(model, optimizer, loss_of, batch, recipe.rate(step))
        log.add(losses, batch[0][:, 1:].size)
        last = step + 1 == recipe.steps
        stop = last or time.monotonic() - began > stop_after
        if stop or (step + 1) % 50 == 0:
            log.write(step + 1, recipe.rate(step))
        if stop:
            _save(out / "checkpoint.pt", model, optimizer, step + 1)
            if not last:
                return False
    # A call after the end comes straight here, in case this was cut off.
    model.to(torch.bfloat16).save_pretrained(out / "model")
    return True


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
        model.load_state_dict(load_file(Path(start_from) / "model.safetensors"), strict=False)
        redraw_digits(model, mixture.digits, recipe.seed)
    return model


def _update(
    model: Any,
    optimizer: torch.optim.Optimizer,
    loss_of: Callable[..., tuple[Tensor, Tensor]],
    batch: tuple[np.ndarray, np.ndarray],
    rate: float,
) -> Tensor:
    """One step of the optimizer; the losses [2] before it, of all tokens and of answers."""
    for group in optimizer.param_groups:
        group["lr"] = rate
    device = model.device
    ids = torch.from_numpy(batch[0].astype(np.int64)).to(device, non_blocking=True)
    weights = torch.from_numpy(batch[1]).to(device, non_blocking=True).float()
    with torch.autocast(device.type, torch.bfloat16):
        loss, answer = loss_of(model, ids, weights)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return torch.stack([loss.detach(), answer])


def _optimizer(model: Any, recipe: Recipe) -> torch.optim.AdamW:
    wide = [p for p in model.parameters() if p.dim() > 1]
    narrow = [p for p in model.parameters() if p.dim() <= 1]
    groups = [
        {"params": wide, "weight_decay": recipe.weight_decay},
        {"params": narrow, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=recipe.peak, betas=(0.9, 0.95))


def _save(path: Path, model: Any, optimizer: torch.optim.Optimizer, step: int) -> None:
    temporary = path.with_suffix(".tmp")
    torch.save(
        {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}, temporary
    )
    temporary.replace(path)


def _resume(path: Path, model: Any, optimizer: torch.optim.Optimizer, device: str) -> int:
    if not path.exists():
        return 0
    state = torch.load(path, map_location=device, weights_only=True)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    return state["step"]


class _Log:
    """Rows of a CSV, each with the mean losses since the row before."""

    def __init__(self, path: Path, report: Callable[[str], object]) -> None:
        self.path, self.report = path, report
        self.began, self.tokens = time.monotonic(), 0
        self.losses: list[Tensor] = []

    def add(self, losses: Tensor, tokens: int) -> None:
        self.losses.append(losses)
        self.tokens += tokens

    def write(self, step: int, rate: float) -> None:
        mean, answer = torch.stack(self.losses).mean(0).tolist()
        self.losses = []
        seconds = time.monotonic() - self.began
        new = not self.path.exists()
        with self.path.open("a", newline="") as file:
            rows = csv.writer(file)
            if new:
                names = ["step", "loss", "answer_nll", "learning_rate", "tokens_this_run"]
                rows.writerow([*names, "seconds_this_run"])
            losses = [f"{mean:.5f}", f"{answer:.5f}"]
            rows.writerow([step, *losses, f"{rate:.3e}", self.tokens, f"{seconds:.1f}"])
        self.report(
            f"step {step} loss {mean:.4f} answers {answer:.4f} "
            f"{self.tokens / seconds:,.0f} tokens/s {seconds:.0f} s"
        )
