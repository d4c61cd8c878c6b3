"""A lightning indexer trained in the two stages of DeepSeek's report: dense warm-up, then sparse."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from topkit.errors import InputError
from topkit.experiments.model.digests import weights_digests
from topkit.experiments.model.load import load
from topkit.experiments.runs.parts import write_whole
from topkit.experiments.train.checkpoint import Checkpoints
from topkit.experiments.train.deadline import Deadline
from topkit.experiments.train.lightning import in_bytes, save_weights
from topkit.experiments.train.loop import Loop
from topkit.experiments.train.mixture import ANSWER, Mixture
from topkit.experiments.train.prepared import drawn, prepared, weighted
from topkit.experiments.train.teacher import Teacher
from topkit.indexers.lightning_weights import load as load_weights

# What the batches are: books alone, or with facts and questions woven in.
DATA = {"books": (1.0, 0.0, 0.0, 0.0, 0.0, 0.0), "mixture": None}

# Token ids, alone or with how many times each token's query counts.
Batches = Callable[[int], Iterable[Tensor | tuple[Tensor, Tensor]]]


@dataclass(frozen=True)
class Stages:
    """How index weights are trained: `steps` over all visible keys, then `sparse_steps` over the `keep` best alone.

    In the sparse stage the model stays as it is, unless `model_too`: the indexer is to stand in for Top-k of the
    model that is measured, whose exact sets would change with its weights. queries: random positions of a batch,
    None for all; answers: how many times one of them counts whose next token is an answer's. Rates rise over a twentieth of a stage and fall as a cosine, to a tenth where a stage follows.
    """

    heads: int = 8
    dim: int = 64
    steps: int = 1000
    sparse_steps: int = 500
    keep: int = 256
    queries: int | None = 1024
    answers: float = 1.0
    rate: float = 1e-3
    sparse_rate: float = 1e-4
    model_too: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.answers < math.inf:
            raise InputError(f"answers must count once or more; got {self.answers:g} times")
        for name in ("heads", "dim", "keep"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1; got {getattr(self, name)}")
        if self.steps < 0 or self.sparse_steps < 0 or self.steps + self.sparse_steps == 0:
            raise InputError(
                f"a training has steps; got {self.steps} and {self.sparse_steps} sparse ones"
            )
        if self.model_too and not self.sparse_steps:
            raise InputError("the model is trained in the sparse stage, which has no steps")

    @property
    def every(self) -> int:
        return self.steps + self.sparse_steps

    def sparse(self, step: int) -> bool:
        return step >= self.steps

    def rate_of(self, step: int) -> float:
        """The learning rate of a step."""
        peak, count, at = self.rate, self.steps, step
        if self.sparse(step):
            peak, count, at = self.sparse_rate, self.sparse_steps, step - self.steps
        floor = 0.1 if self.sparse_steps and not self.sparse(step) else 0.0
        rise = max(1, count // 20)
        fall = floor + (1 - floor) * (0.5 + 0.5 * math.cos(math.pi * at / count))
        return peak * min((at + 1) / rise, fall)


def train_weights(
    model: Any,
    batches: Batches,
    folder: Path | str,
    stages: Stages | None = None,
    *,
    name: str | None = None,
    data: str = "",
    start_from: str | None = None,
    stop_after: float = math.inf,
    small: bool = False,
    report: Callable[[str], object] = lambda line: None,
) -> Path | None:
    """Train a lightning indexer for each layer of a dense model; a further call goes on where one ended.

    batches: those of token ids [B, T] from a step on, each by its number alone, or pairs with how many times each token's
    query counts; RoPE must span at most `dim`.
    start_from: weights to begin from; small: matrices are kept in int8. Files: folder/name-HASH.safetensors,
    lightning.json, lightning.csv, checkpoints/; of a model that was trained too, model/. Returns None where it
    stopped after so many seconds.
    Raises: InputError for a model that it cannot learn from, a folder that was begun otherwise, and a loss that
    is NaN.
    """
    stages, folder = stages or Stages(), Path(folder)
    named, digests = name or model.config.model_type, weights_digests(model)
    begin = None if start_from is None else load_weights(start_from)
    teacher = Teacher(
        model, stages.heads, stages.dim, stages.queries, stages.seed, begin=begin, model_too=stages.model_too,
    )  # fmt: skip
    # What came later is silent at its default, so that a folder of before goes on.
    own = {name: x for name, x in asdict(stages).items() if (name, x) != ("answers", 1.0)}
    _claim(folder, {**own, "model": digests[0], "start_from": begin and begin.path.name})

    def losses(_: Any, ids: Tensor, number: Tensor, *counts: Tensor) -> tuple[Tensor, Tensor]:
        step = int(number)
        return teacher.loss(ids, step, stages.keep if stages.sparse(step) else None, *counts)

    def numbered(start: int) -> Iterator[tuple[Tensor, ...]]:
        for number, batch in enumerate(batches(start), start):
            ids, *counts = batch if isinstance(batch, tuple) else (batch,)
            yield ids, torch.tensor([number]), *counts

    done = Loop(
        steps=stages.every,
        batches=lambda start: islice(numbered(start), stages.every - start),
        losses_of=losses,
        rate_of=stages.rate_of,
        checkpoints=Checkpoints(folder / "checkpoints", report),
        log=folder / "lightning.csv",
        autocast=None,
    ).run(teacher, _optimizer(teacher), stop_after)
    if not done:
        return None
    if stages.model_too:
        model.save_pretrained(folder / "model")
        digests = weights_digests(model)
    tensors = teacher.tensors()
    tensors = in_bytes(tensors) if small else {n: x.to(torch.bfloat16) for n, x in tensors.items()}
    described = {"heads": stages.heads, "rope": "half", "rope_at": "first", "reads": "hidden"}
    described |= {"data": data} if data else {}
    return save_weights(folder, named, tensors, **described, model=" ".join(digests))


def batches_of(
    mixture: Mixture, numbers: range, rows: int, length: int, workers: int, answers: float
) -> Iterator[Tensor | tuple[Tensor, Tensor]]:
    """Token ids [rows, length]; where answers count more than once, with how many times each token's query counts."""
    if answers == 1:
        yield from drawn(mixture, numbers, rows, length, workers)
        return
    for ids, weights in weighted(mixture, numbers, rows, length - 1, workers):
        following = np.pad(weights[:, 1:], ((0, 0), (0, 1)))
        counts = np.where(following == ANSWER, answers, 1.0).astype(np.float32)
        yield torch.from_numpy(ids.astype(np.int64)), torch.from_numpy(counts)


def _optimizer(teacher: Teacher) -> torch.optim.Optimizer:
    return torch.optim.AdamW(teacher.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.0)


def _claim(folder: Path, settings: dict[str, Any]) -> None:
    """Raises: InputError where the folder was begun with other settings."""
    path, text = folder / "lightning.json", json.dumps(settings, indent=1) + "\n"
    if path.exists() and path.read_text() != text:
        raise InputError(f"{folder} was begun with other settings ({path}); choose another folder")
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(path, lambda to: to.write_text(text))


def train_for(
    name: str,
    corpus: Path | str,
    out: Path | str,
    stages: Stages | None = None,
    *,
    data: str = "mixture",
    rows: int = 8,
    length: int = 4096,
    most: int | None = None,
    device: str = "cuda",
    workers: int = 8,
    start_from: str | None = None,
    stop_after: float = math.inf,
    small: bool = False,
    report: Callable[[str], object] = print,
) -> Path | None:
    """Train a lightning indexer for the model `name` on books, or on what the reference model was trained on.

    data: "books", or "mixture": with facts and questions woven in, other draws than the model's. most: of the
    corpus the first so many books. Files: those of `train_weights`, and out/text, the corpus as tokens.
    Raises: InputError as `train_weights`; and for data of another name.
    """
    if data not in DATA:
        raise InputError(f"data must be {' or '.join(DATA)}; got {data!r}")
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise InputError(
            "training asks for a CUDA GPU and there is none; use --quick, or --device cpu"
        )
    stages, deadline = stages or Stages(), Deadline.within(stop_after)
    model, tokenizer = load(name, device)
    mixture = prepared(name, tokenizer, corpus, out, stages.seed, most, deadline)
    if mixture is None:
        return None
    shares = DATA[data]
    made = mixture if shares is None else replace(mixture, shares=shares)
    return train_weights(
        model,
        lambda start: batches_of(
            made, range(start, stages.every), rows, length, workers, stages.answers
        ),
        out,
        stages,
        name=f"{Path(name).name}-{data}",
        data=data,
        start_from=start_from,
        stop_after=deadline.left,
        small=small,
        report=report,
    )
