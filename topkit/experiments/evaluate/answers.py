"""What each cell answers to the questions of one haystack, and how well it knew the answers.

The true answer is fed to the model, one step a token (teacher forcing): a cell whose every step
prefers the answer's next token decodes exactly that answer greedily. Only the other cells are
decoded, from their first mistake on.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa
import torch
from torch import Tensor
from transformers import PreTrainedModel

from topkit.experiments.decode.driver import Driver
from topkit.experiments.evaluate.observer import Observer
from topkit.experiments.evaluate.shared_prefix import forward, prefill
from topkit.experiments.evaluate.streams import Past, Stream
from topkit.experiments.runs.cells import Cell, needs
from topkit.experiments.tasks import Prompt, Question
from topkit.indexers.base import Index, Indexer


@dataclass(frozen=True)
class Answer:
    """What one cell said to one question; lists have an entry for each token of the true answer.

    likeliest: its most likely token at each step, after the true answer's tokens before it; said: what
    it decodes greedily, nothing for running text.
    """

    question: int
    likeliest: list[int]
    said: list[int]
    nll: list[float]
    kl: list[float]


class QuestionRows:
    """Questions of one length, as rows: question [B, m]; answer [B, a] and which of it is real."""

    def __init__(
        self, questions: Sequence[Question], numbers: Sequence[int], device: torch.device
    ) -> None:
        questions, self.numbers = [questions[n] for n in numbers], numbers
        self.lengths = [len(q.answer_ids) for q in questions]
        # Tokens to decode: none of running text, which has no right answer to compare with.
        self.decoded = [len(q.answer_ids) if q.references else 0 for q in questions]
        self.longest = max(self.lengths)
        answers = [[*q.answer_ids, *[0] * (self.longest - len(q.answer_ids))] for q in questions]
        self.question = torch.tensor([list(q.ids) for q in questions], device=device)
        self.answer = torch.tensor(answers, device=device)
        place = torch.arange(self.longest, device=device)
        self.real = place < torch.tensor(self.lengths, device=device)[:, None]

    @property
    def last(self) -> Tensor:
        """The question's last token [B, 1]: its step predicts the answer's first token."""
        return self.question[:, -1:]


class Haystack:
    """A prompt's haystack, prefilled dense, and an index of it for every recipe and layer."""

    def __init__(
        self,
        model: PreTrainedModel,
        prompt: Prompt,
        cells: Sequence[Cell],
        *,
        context: int,
        seed: int,
        observe: bool | str = False,
    ) -> None:
        self.model, self.prompt, self.context, self.seed = model, prompt, context, seed
        self.observe = observe
        # Full attention leads every batch: the others are compared with it.
        self.cells = [Cell(), *(cell for cell in cells if cell.indexer is not None)]
        self.prefix = prefill(model, prompt.ids, needs(self.cells))
        self.built: dict[Indexer, dict[int, Index]] = {}
        self.past: dict[int, Past] = {}
        self.fidelity: list[pa.Table] = []

    def answers(self, sparse_from: str, rows: int) -> dict[Cell, list[Answer]]:
        """Every cell's answers, in batches of at most `rows` rows, but of at least one question."""
        answers: dict[Cell, list[Answer]] = {cell: [] for cell in self.cells}
        together = max(1, rows // len(self.cells))
        self._make_room(together)
        for numbers in alike(self.prompt.questions, together):
            batch = QuestionRows(self.prompt.questions, numbers, self.model.device)
            for cell, said in zip(self.cells, self._ask(batch, sparse_from), strict=True):
                answers[cell] += [Answer(n, *lists) for n, lists in zip(numbers, said, strict=True)]
        return answers

    def _make_room(self, rows: int) -> None:
        room = max(len(q.ids) + len(q.answer_ids) for q in self.prompt.questions)
        rows = min(rows, len(self.prompt.questions))
        self.past = {layer: past.with_room(rows, room) for layer, past in self.prefix.items()}

    def _ask(self, batch: QuestionRows, sparse_from: str) -> Iterator[list[tuple[list, ...]]]:
        streams = [self._stream(cell, len(batch.lengths)) for cell in self.cells]
        self._read(streams, batch.question[:, :-1], sparse_from)
        waiting = [stream.fork() for stream in streams]
        observers = self._observers(streams) if self.observe else []
        fed = torch.cat([batch.last, batch.answer[:, :-1]], 1)
        logits = self._forward(streams, fed.repeat(len(streams), 1), batch.longest)
        first = len(self.prompt.ids) + batch.question.shape[1] - 1
        for observer in observers:
            each = self.observe == "rows"
            self.fidelity += observer.tables(batch.numbers, batch.real, first, each)
        likeliest, nll, kl = _judge(logits.unflatten(0, (len(streams), -1)), batch.answer)
        said = self._decode(waiting, batch, likeliest)
        lists = [x.tolist() for x in (likeliest, said, nll, kl)]
        for cell in range(len(streams)):
            yield [
                tuple(x[cell][row][:n] for x, n in zip(lists, (n, decoded, n, n), strict=True))
                for row, (n, decoded) in enumerate(zip(batch.lengths, batch.decoded, strict=True))
            ]

    def _stream(self, cell: Cell, rows: int) -> Stream:
        indices = {}
        if cell.indexer is not None:
            if cell.indexer not in self.built or cell.indexer.traits().remembers:
                self.built[cell.indexer] = self._build(cell.indexer)
            indices = self.built[cell.indexer]
        stream = Stream(cell, cell.k(self.context), indices, self.seed, 1)
        device = self.model.device
        return stream.fork(torch.zeros(rows, dtype=torch.long, device=device) if rows > 1 else None)

    def _build(self, indexer: Indexer) -> dict[int, Index]:
        indices = {}
        for layer, past in self.prefix.items():
            heads = past.keys.shape[1]
            driver = Driver(indexer, layer, past.scaling, heads, self.seed)
            indices[layer] = driver.build(past.prefix, past.inputs)
        return indices

    def _read(self, streams: Sequence[Stream], ids: Tensor, sparse_from: str) -> None:
        """Process the question without its last token: each stream by its own attention, or all dense."""
        if ids.shape[1] == 0:
            return
        if sparse_from == "question":
            self._forward(streams, ids.repeat(len(streams), 1), 1)
        else:
            self._forward(streams[:1], ids, 1, followers=streams[1:])

    def _observers(self, streams: Sequence[Stream]) -> list[Observer]:
        scaling = {layer: past.scaling for layer, past in self.past.items()}
        observers = [Observer(stream, scaling) for stream in streams if stream.k is not None]
        for observer in observers:
            observer.stream.watch = observer
        return observers

    def _decode(self, streams: Sequence[Stream], batch: QuestionRows, likeliest: Tensor) -> Tensor:
        """What is said greedily [C, B, a]."""
        right = (likeliest == batch.answer) | ~batch.real
        wrong_at = right.int().cumprod(-1).sum(-1)  # a where nothing is wrong
        # After a mistake at the last token there is nothing more to say.
        goes_on = wrong_at < torch.tensor(batch.decoded, device=right.device) - 1
        rows = [row.nonzero()[:, 0] for row in goes_on]
        said = likeliest.clone()
        if not goes_on.any():
            return said
        going = [(n, s.fork(rows[n])) for n, s in enumerate(streams) if len(rows[n])]
        forced, until = likeliest[goes_on], wrong_at[goes_on]
        tokens = forced[:, : int(until.min()) + 1]
        fed = torch.cat([torch.cat([batch.last[rows[n]] for n, _ in going]), tokens], 1)
        while tokens.shape[1] < batch.longest:
            logits = self._forward([stream for _, stream in going], fed, 1)
            place = tokens.shape[1]
            fed = forced[:, place, None].where(place <= until[:, None], logits.argmax(-1))
            tokens = torch.cat([tokens, fed], 1)
        said[goes_on] = tokens
        return said

    def _forward(
        self,
        streams: Sequence[Stream],
        ids: Tensor,
        last: int,
        followers: Sequence[Stream] = (),
    ) -> Tensor:
        return forward(self.model, self.past, streams, ids, last, followers)


def alike(questions: Sequence[Question], most: int) -> list[list[int]]:
    """The numbers of the questions in runs of one token count, none longer than `most`."""
    by_length: dict[int, list[int]] = {}
    for number, question in enumerate(questions):
        by_length.setdefault(len(question.ids), []).append(number)
    return [
        numbers[at : at + most]
        for _, numbers in sorted(by_length.items())
        for at in range(0, len(numbers), most)
    ]


def _judge(logits: Tensor, answer: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Likeliest tokens, NLL of the answer, and KL from the first cell [C, B, a]; logits [C, B, a, V]."""
    dense = logits[0].float().log_softmax(-1)
    likeliest, nll, kl = [], [], []
    for of_cell in logits:
        logs = of_cell.float().log_softmax(-1)
        likeliest.append(logs.argmax(-1))
        nll.append(-logs.gather(-1, answer[..., None])[..., 0])
        kl.append((dense.exp() * (dense - logs)).sum(-1).clamp_min(0))
    return torch.stack(likeliest), torch.stack(nll), torch.stack(kl)
