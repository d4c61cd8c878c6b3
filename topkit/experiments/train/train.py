"""Training the reference model: one GPU, about ten minutes."""

from __future__ import annotations

import csv
import json
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
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
from topkit.experiments.tasks.base import random_for
from topkit.experiments.train.corpus import books, tokenise
from topkit.experiments.train.mixture import ANSWER, Mixture
from topkit.experiments.train.tokenizer import save_tokenizer, train_tokenizer


@dataclass(frozen=True)
class Phase:
    """So many steps of `rows` sequences of `length` tokens."""

    steps: int
    rows: int
    length: int


@dataclass(frozen=True)
class Recipe:
    """All that decides the reference model, besides the books."""

    phases: tuple[Phase, ...] = (Phase(2200, 128, 2048), Phase(640, 32, 8192))
    layers: int = 8
    width: int = 384
    heads: int = 6
    kv_heads: int = 2
    head_dim: int = 64
    feed_forward: int = 1024
    vocabulary: int = 4096
    rope_base: float = 1e5
    peak: float = 3e-3
    floor: float = 6e-4
    last: float = 6e-5
    warmup: int = 150
    decay: float = 0.12
    weight_decay: float = 0.1
    seed: int = 0

    @property
    def steps(self) -> int:
        return sum(phase.steps for phase in self.phases)

    def rate(self, step: int) -> float:
        """Warm-up, a cosine from `peak` to `floor`, then a line down to `last`."""
        if step < self.warmup:
            return self.peak * (step + 1) / self.warmup
        turn = self.steps * (1 - self.decay)
        if step >= turn:
            left = (self.steps - step) / (self.steps - turn)
            return self.last + (self.floor - self.last) * left
        done = (step - self.warmup) / (turn - self.warmup)
        return self.floor + (self.peak - self.floor) * 0.5 * (1 + math.cos(math.pi * done))

    def phase(self, step: int) -> Phase:
        for phase in self.phases:
            if step < phase.steps:
                return phase
            step -= phase.steps
        raise InputError(f"the recipe has {self.steps} steps")

    @classmethod
    def second(cls) -> Recipe:
        """What followed the first run, from its weights, with the digits' embeddings drawn anew.

        Tied to the output, the ten digits had become nearly one vector (cosines 0.8 to 0.95) while
        no answer could yet be found, and what they had been could not be copied any more.
        """
        phases = (Phase(1300, 128, 2048), Phase(130, 32, 8192))
        return replace(cls(), phases=phases, peak=2e-3, floor=4e-4, warmup=100, decay=0.2, seed=1)

    @classmethod
    def tiny(cls) -> Recipe:
        """Seconds on a laptop: shows that the recipe runs, and nothing else."""
        phases = (Phase(4, 2, 256), Phase(2, 2, 512))
        return replace(
            cls(), phases=phases, layers=2, width=64, heads=2, kv_heads=1, head_dim=32,
            feed_forward=128, vocabulary=512, warmup=2,
        )  # fmt: skip


def new_model(recipe: Recipe) -> Any:
    """A Qwen3 model of the recipe's shape, weights drawn from its seed."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(recipe.seed)
    return Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=recipe.vocabulary,
            hidden_size=recipe.width,
            intermediate_size=recipe.feed_forward,
            num_hidden_layers=recipe.layers,
            num_attention_heads=recipe.heads,
            num_key_value_heads=recipe.kv_heads,
            head_dim=recipe.head_dim,
            max_position_embeddings=max(8192, *(p.length for p in recipe.phases)),
            rope_parameters={"rope_type": "default", "rope_theta": recipe.rope_base},
            tie_word_embeddings=True,
            attention_dropout=0.0,
            bos_token_id=0,
            eos_token_id=1,
            pad_token_id=1,
            initializer_range=0.02,
        )
    )


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
    told = (losses.detach() * answers).sum() / answers.sum().clamp_min(1)
    return (losses * weights).sum() / weights.sum(), told


def train_reference(
    corpus: Path | str,
    out: Path | str,
    *,
    recipe: Recipe | None = None,
    start_from: Path | str | None = None,
    device: str = "cuda",
    workers: int = 14,
    stop_after: float = math.inf,
    report: Any = print,
) -> bool:
    """Train to the recipe's end, or for `stop_after` seconds; a further call goes on from there.

    `start_from` is the folder of a model whose weights and tokenizer are gone on with, its digits'
    embeddings drawn anew.

    Writes out/model (Hugging Face format, bf16, once done), training_log.csv, recipe.json,
    checkpoint.pt. Returns whether the recipe's end was reached.
    Raises: InputError when there is no such GPU or corpus, or `out` was begun with another recipe.
    """
    recipe, out = recipe or Recipe(), Path(out)
    if start_from is not None:
        for name in ("tokenizer.json", "model.safetensors"):
            if not (Path(start_from) / name).is_file():
                raise InputError(f"no model to start from at {start_from}: it lacks {name}")
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("training asks for a CUDA GPU and there is none; use --tiny --device cpu")
    text, begun = json.dumps(asdict(recipe), indent=1), out / "recipe.json"
    if begun.exists() and begun.read_text() != text:
        raise InputError(f"{out} was begun with another recipe; choose another folder")
    mixture = prepare(Path(corpus), out, recipe, start_from)
    begun.write_text(text)
    model = new_model(recipe)
    if start_from is not None:
        model.load_state_dict(load_file(Path(start_from) / "model.safetensors"), strict=False)
        redraw_digits(model, mixture.digits, recipe.seed)
    model = model.to(device).train()
    optimizer = _optimizer(model, recipe)
    start = _resume(out / "checkpoint.pt", model, optimizer, device)
    loss_of = torch.compile(weighted_loss, dynamic=False) if device == "cuda" else weighted_loss
    began, tokens, seen = time.monotonic(), 0, []
    for step, (ids, weights) in enumerate(batches(mixture, recipe, start, workers), start):
        for group in optimizer.param_groups:
            group["lr"] = recipe.rate(step)
        ids = torch.from_numpy(ids.astype(np.int64)).to(device, non_blocking=True)
        weights = torch.from_numpy(weights).to(device, non_blocking=True).float()
        with torch.autocast(device, torch.bfloat16):
            loss, told = loss_of(model, ids, weights)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        seen.append(torch.stack([loss.detach(), told]))
        tokens += ids[:, 1:].numel()
        last = step + 1 == recipe.steps
        stop = last or time.monotonic() - began > stop_after
        if stop or (step + 1) % 50 == 0:
            (mean, answer), seen = torch.stack(seen).mean(0).tolist(), []
            seconds, rate = time.monotonic() - began, f"{recipe.rate(step):.3e}"
            row = [step + 1, f"{mean:.5f}", f"{answer:.5f}", rate, tokens, f"{seconds:.1f}"]
            _log(out / "training_log.csv", row)
            report(
                f"step {step + 1} loss {mean:.4f} answers {answer:.4f} "
                f"{tokens / seconds:,.0f} tokens/s {seconds:.0f} s"
            )
        if stop:
            _save(out / "checkpoint.pt", model, optimizer, step + 1)
            if not last:
                return False
    # A call after the end comes straight here, in case this was cut off.
    model.to(torch.bfloat16).save_pretrained(out / "model")
    return True


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


def _log(path: Path, row: list) -> None:
    new = not path.exists()
    with path.open("a", newline="") as file:
        rows = csv.writer(file)
        if new:
            names = ["step", "loss", "answer_nll", "learning_rate", "tokens_this_run"]
            rows.writerow([*names, "seconds_this_run"])
        rows.writerow(row)
