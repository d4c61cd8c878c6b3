"""Low-rank maps of queries and keys, learnt of a frozen model's attention."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from topkit.errors import InputError
from topkit.experiments.model.attention import switched_attention
from topkit.experiments.model.attention_call import AttentionCall
from topkit.experiments.model.digests import weights_digests
from topkit.experiments.model.load import load
from topkit.experiments.model.record import NOT_SWITCHED
from topkit.experiments.train.deadline import Deadline
from topkit.experiments.train.lightning import save_weights
from topkit.experiments.train.prepared import drawn, prepared
from topkit.indexers.projected_file import KIND
from topkit.kernels.score import score

# Steps between two checkpoints, and two reports.
_EVERY = 25
# Books of the corpus that are read: enough for these steps.
_BOOKS = 40


class Student:
    """Maps of every layer, and how far their attention is from the layer's own.

    The loss is KL(attention || softmax of the projected scores), of each query head by itself, at `queries`
    random positions a batch. Maps begin as the leading directions of each KV head's keys in the first
    batch (arXiv 2406.02542).
    Source: arXiv 2512.02556, section 2.1, whose target is the sum over heads.
    """

    def __init__(self, model: Any, rank: int, queries: int, seed: int) -> None:
        self.model, self.rank, self.queries, self.seed = model, rank, queries, seed
        self.maps: dict[str, Tensor] = {}
        self._losses: list[Tensor] = []
        self._random = torch.Generator()

    def begin(self, ids: Tensor) -> None:
        """Give every layer its first maps, by a pass over token ids [B, T]."""
        self._pass(ids, self._begin)

    def loss(self, ids: Tensor, number: int) -> Tensor:
        """The mean loss of all layers over token ids [B, T], the batch of this number.

        Raises: InputError for a model whose attention cannot be watched, or is not softmax(q k) v.
        """
        self._random.manual_seed(self.seed * 1_000_003 + number)
        self._losses = []
        self._pass(ids, self._grade)
        return torch.stack(self._losses).mean()

    def _pass(self, ids: Tensor, watch: Callable[[AttentionCall], None]) -> None:
        seen: list[int] = []

        def attend(call: AttentionCall) -> Tensor:
            call.require_plain()
            watch(call)
            seen.append(call.layer)
            return call.dense()

        with switched_attention(self.model, attend):
            self.model.base_model(ids, use_cache=False)
        if not seen:
            name = type(self.model).__name__
            raise InputError(f"{name} cannot be learnt from: {NOT_SWITCHED}")

    def _begin(self, call: AttentionCall) -> None:
        width = call.keys.shape[3]
        if self.rank > width:
            raise InputError(f"rank must be at most the head's {width} dimensions; got {self.rank}")
        keys = call.keys.double().transpose(0, 1).flatten(1, 2)
        leading = torch.linalg.eigh(keys.mT @ keys).eigenvectors.flip(-1)[..., : self.rank]
        # A direction's sign is arbitrary: the largest component decides.
        most = leading.gather(1, leading.abs().argmax(1, keepdim=True))
        maps = (leading * most.sign()).mT.float()
        group = call.queries.shape[1] // call.keys.shape[1]
        for part, own in (("queries", maps.repeat_interleave(group, 0)), ("keys", maps)):
            self.maps[f"{call.layer}.{part}"] = own.clone().requires_grad_()

    def _grade(self, call: AttentionCall) -> None:
        length, device = call.keys.shape[2], call.keys.device
        at = torch.randint(1, length, (self.queries,), generator=self._random).to(device)
        future = torch.arange(length, device=device) > at[:, None]
        queries, keys = call.queries[:, :, at].float(), call.keys.float()
        target = (call.scaling * score(queries, keys)).masked_fill(future, -math.inf).softmax(-1)
        with torch.enable_grad():
            queries = queries @ self.maps[f"{call.layer}.queries"].mT
            keys = keys @ self.maps[f"{call.layer}.keys"].mT
            scores = (call.scaling * score(queries, keys)).masked_fill(future, -math.inf)
            logs = scores.log_softmax(-1).masked_fill(future, 0)
            self._losses.append((torch.special.entr(target).neg() - target * logs).sum(-1).mean())


def train_projected(
    model: Any,
    batches: Callable[[int], Iterator[Tensor]],
    folder: Path | str,
    *,
    name: str | None = None,
    rank: int = 16,
    steps: int = 200,
    learning_rate: float = 3e-3,
    queries: int = 64,
    seed: int = 0,
    stop_after: float = math.inf,
    report: Callable[[int, float], object] = lambda step, loss: None,
) -> Path | None:
    """Train maps for each layer of a frozen model; a further call goes on where one ended.

    `batches` gives the batches of token ids [B, T] from a step on. Files: folder/NAME-HASH.safetensors, and
    folder/NAME-projected.pt, the state to go on from. Returns None where it stopped after so many seconds.
    Raises: InputError for a model that it cannot learn from, and a state that was begun otherwise.
    """
    folder = Path(folder)
    name = str(name or model.config.model_type)
    digests = weights_digests(model)
    settings = [digests, rank, steps, learning_rate, queries, seed]
    begun = hashlib.sha256(repr(settings).encode()).hexdigest()
    student, state = Student(model, rank, queries, seed), folder / f"{name}-projected.pt"
    number, moments = _resumed(state, begun, student)
    ahead, began = batches(number), time.monotonic()
    optimizer = None
    while number < steps:
        ids = next(ahead).to(model.device)
        if not student.maps:
            student.begin(ids)
        if optimizer is None:
            optimizer = torch.optim.Adam(student.maps.values(), lr=learning_rate, betas=(0.9, 0.95))
            if moments is not None:
                optimizer.load_state_dict(moments)
        loss, rate = student.loss(ids, number), learning_rate * _share(number, steps)
        _update(optimizer, loss, rate)
        number += 1
        late = time.monotonic() - began > stop_after
        if number % _EVERY == 0 or number == steps or late:
            report(number, loss.item())
            _save(state, begun, student, number, optimizer)
        if late and number < steps:
            return None
    maps = {key: x.detach().to(torch.bfloat16) for key, x in student.maps.items()}
    return save_weights(folder, name, maps, kind=KIND, model=" ".join(digests))


def train_projected_for(
    name: str,
    corpus: Path | str,
    out: Path | str,
    *,
    rank: int = 16,
    steps: int = 200,
    rows: int = 1,
    length: int = 1024,
    device: str | None = None,
    workers: int = 1,
    seed: int = 0,
    stop_after: float = math.inf,
    report: Callable[[str], object] = print,
) -> Path | None:
    """Train maps for the model `name` on some books, with facts and questions woven in.

    corpus: the folder of books-train.jsonl.xz. Files: those of `train_projected`, and out/text, the corpus as tokens.
    """
    deadline = Deadline.within(stop_after)
    model, tokenizer = load(name, device)
    mixture = prepared(name, tokenizer, corpus, out, seed, _BOOKS, deadline)
    if mixture is None:
        return None
    return train_projected(
        model,
        lambda start: drawn(mixture, range(start, steps), rows, length, workers),
        out,
        name=Path(name).name,
        rank=rank,
        steps=steps,
        seed=seed,
        stop_after=deadline.left,
        report=lambda step, loss: report(f"step {step} KL {loss:.4f}"),
    )


def _share(number: int, steps: int) -> float:
    """A step's share of the learning rate: a linear rise over a twentieth of the steps, then a cosine."""
    rise = max(1, steps // 20)
    return min((number + 1) / rise, 0.5 + 0.5 * math.cos(math.pi * number / steps))


def _update(optimizer: torch.optim.Optimizer, loss: Tensor, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()


def _save(
    path: Path, begun: str, student: Student, number: int, optimizer: torch.optim.Optimizer
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    maps = {name: x.detach() for name, x in student.maps.items()}
    temporary = path.with_suffix(".tmp")
    state = {"begun": begun, "maps": maps, "step": number, "optimizer": optimizer.state_dict()}
    torch.save(state, temporary)
    temporary.replace(path)


def _resumed(path: Path, begun: str, student: Student) -> tuple[int, dict[str, Any] | None]:
    """The step to go on from, and the optimizer's state; the maps go to the student."""
    if not path.exists():
        return 0, None
    try:
        state = torch.load(path, map_location=student.model.device, weights_only=True)
        same = state["begun"] == begun
    except Exception as error:  # a file may be wrong in any way
        raise InputError(f"cannot go on from {path}: {error}; delete it to begin anew") from error
    if not same:
        raise InputError(
            f"{path} was begun with another model or other settings; choose another folder, or delete it"
        )
    student.maps = {name: x.requires_grad_() for name, x in state["maps"].items()}
    return state["step"], state["optimizer"]
