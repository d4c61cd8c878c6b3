"""What each cell answers to the questions of one haystack, and how well it knew the answers.

The true answer is fed to the model, one step a token (teacher forcing): a cell whose every step
prefers the answer's next token decodes exactly that answer greedily. Each goes on from there in its own
words, or from its first mistake, up to a stop.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import groupby, islice
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor
from transformers import PreTrainedModel

from topkit.experiments.evaluate.built import Built
from topkit.experiments.evaluate.observer import Observer
from topkit.experiments.evaluate.own_words import Line, Row, Stops, go_on
from topkit.experiments.evaluate.question_rows import QuestionRows, Wanted, alike
from topkit.experiments.evaluate.setting import EACH, OF_ANSWERS
from topkit.experiments.evaluate.shadow import in_shadow, shadow_streams
from topkit.experiments.evaluate.shared_prefix import forward, prefill
from topkit.experiments.evaluate.stepped import (
    Graphed,
    Run,
    in_turn,
    refuse,
    release,
    side_by_side,
    together,
    worthwhile,
)
from topkit.experiments.evaluate.streams import Stream
from topkit.experiments.model.load import positions
from topkit.experiments.runs.cells import Cell, needs
from topkit.experiments.tasks import Prompt, answer_keys


@dataclass(frozen=True)
class Answer:
    """What one cell said to one question; lists have an entry for each token of the true answer.

    likeliest: its most likely token at each step, after the true answer's tokens before it; said: what
    it decodes greedily, with the stop that ends it; nothing for running text.
    """

    question: int
    likeliest: list[int]
    said: list[int]
    nll: list[float]
    kl: list[float]


class Haystack:
    """A prompt's haystack, prefilled dense, and an index of it for every recipe and layer."""

    def __init__(
        self,
        model: PreTrainedModel,
        prompt: Prompt,
        cells: Sequence[Cell],
        *,
        tokenizer: Any,
        context: int,
        seed: int,
        observe: bool | str = False,
        shadow: bool = False,
    ) -> None:
        self.model, self.prompt, self.context = model, prompt, context
        self.observe, self.shadow = observe, shadow
        keys = answer_keys(prompt, tokenizer) if observe else None
        self._wanted = None if keys is None else Wanted(keys)
        self.stops = Stops.of(model, tokenizer, prompt)
        # Full attention leads every batch: the others are compared with it.
        self.cells = [Cell(), *(cell for cell in cells if cell.indexer is not None)]
        # Slots that the longest of the questions and its answer need, behind the haystack's.
        self._need = _need(prompt)
        release(model, self._need)
        question = len(prompt.questions[0].ids)
        self.prefix = prefill(model, prompt.ids, needs(self.cells), question)
        self.built = Built(self.prefix, seed)
        self._graphed: Graphed | None = None
        self._graphs = worthwhile(model, self.prefix, self.cells, prompt)
        self.fidelity: list[pa.Table] = []
        # Tokens of the haystack and of the questions that are asked at the time.
        self.asked = len(prompt.ids)

    def answers(self, sparse_from: str, rows: int) -> dict[Cell, list[Answer]]:
        """Every cell's answers, in batches of at most `rows` rows, but of at least one question."""
        answers: dict[Cell, list[Answer]] = {cell: [] for cell in self.cells}
        most = max(1, rows // len(self.cells))
        if self._graphs:
            in_turn(self.cells, sparse_from)
        for numbers in alike(self.prompt.questions, most):
            batch = QuestionRows(self.prompt, numbers, self.model.device)
            for cell, said in zip(self.cells, self._asked(batch, sparse_from), strict=True):
                answers[cell] += [Answer(n, *lists) for n, lists in zip(numbers, said, strict=True)]
        return answers

    def _asked(self, batch: QuestionRows, sparse_from: str) -> list[list[tuple[list, ...]]]:
        """What `_judged` gives: by a graph of the steps, or kernel by kernel where there can be none."""
        judged = len(self.fidelity)
        if self._graphs:
            try:
                self._graphed = Graphed(
                    self.model,
                    self.built,
                    self.cells,
                    len(batch.numbers),
                    self.context,
                    self._need,
                    sparse_from,
                )
                said = self._judged(batch, sparse_from)
                self._graphed.keep()
                return said
            except (
                Exception
            ) as error:  # whatever a model or a recipe may do; without a graph it is named
                self._graphs = False
                del self.fidelity[judged:]
                refuse(self.model, error)
            finally:
                self._graphed = None
        return self._judged(batch, sparse_from)

    def _judged(self, batch: QuestionRows, sparse_from: str) -> list[list[tuple[list, ...]]]:
        """What `_ask` gives, with what is selected in shadow judged before."""
        if self.shadow:
            self._judge_in_shadow(batch, sparse_from)
        return list(self._ask(batch, sparse_from))

    def _most(self, number: int) -> int:
        """How many tokens may be said to a question: no more than the model has positions for."""
        most = self.prompt.most(number)
        limit = positions(self.model)
        if limit is None:
            return most
        return max(0, min(most, limit + 1 - self.prompt.tokens(number)))

    def _ask(self, batch: QuestionRows, sparse_from: str) -> Iterator[list[tuple[list, ...]]]:
        count, self.asked = len(batch.lengths), len(self.prompt.ids) + batch.question.shape[1]
        fixed = [] if self._graphed is None else self._graphed.streams()
        others = self.cells[sum(stream.rows for stream in fixed) // count :]
        streams = fixed + [
            self.built.stream(list(cells), count, self.context)
            for _, cells in groupby(others, together)
        ]
        self._read(streams, batch, sparse_from)
        again = [None if self._cuts(stream, batch) else stream.fork() for stream in streams]
        fed = torch.cat([batch.last, batch.answer[:, :-1]], 1)
        first = len(self.prompt.ids) + batch.question.shape[1] - 1
        with self._observed(streams, batch, batch.real, "answer", first) as watch:
            ids = fed.repeat(len(self.cells), 1)
            logits = self._forward(streams, ids, batch.longest, watch=watch)
        judged = _judge(logits.unflatten(0, (len(self.cells), -1)), batch.answer)
        likeliest, nll, kl = (x.tolist() for x in judged)
        said = self._said(streams, again, batch, judged[0])
        for cell in range(len(self.cells)):
            yield [
                (likeliest[cell][row][:n], said[cell][row], nll[cell][row][:n], kl[cell][row][:n])
                for row, n in enumerate(batch.lengths)
            ]

    def _read(self, streams: Sequence[Stream], batch: QuestionRows, sparse_from: str) -> None:
        """Process the question without its last token: each stream by its own attention, or all dense."""
        ids = batch.question[:, :-1]
        if ids.shape[1] == 0:
            return
        if sparse_from == "answer":
            self._forward(streams[:1], ids, 1, followers=streams[1:])
            return
        real = torch.ones_like(ids, dtype=torch.bool)
        with self._observed(streams, batch, real, "question", len(self.prompt.ids)) as watch:
            self._forward(streams, ids.repeat(len(self.cells), 1), 1, watch=watch)

    def _judge_in_shadow(self, batch: QuestionRows, sparse_from: str) -> None:
        """Judge what every cell selects for the queries of full attention, behind one dense stream."""
        count = len(batch.numbers)
        stepped = [] if self._graphed is None else self._graphed.fixed()
        others = self.cells[sum(stream.rows for stream in stepped) // count :]
        shadows = shadow_streams(self.built, others, count, self.context)
        dense = Stream([Cell()] * count, self.context, {}, self.built.seed)

        def through(ids: Tensor, real: Tensor, steps: str, first: int, choosing: bool) -> None:
            seen = real, steps, first, True
            with (
                self._observed(stepped, batch, *seen) as one,
                self._observed(shadows, batch, *seen) as other,
            ):
                runs = list[Run]()
                if self._graphed is not None:
                    runs.append(partial(self._graphed.in_shadow, stepped, ids, one, choosing))
                if shadows:
                    own = self.model, self.prefix, dense, shadows, ids, self.asked, other, choosing
                    runs.append(partial(in_shadow, *own))
                if runs:
                    side_by_side(runs, ids.device)

        ids, begin = batch.question[:, :-1], len(self.prompt.ids)
        self.asked = begin + batch.question.shape[1]
        if ids.shape[1]:
            real = torch.ones_like(ids, dtype=torch.bool)
            chosen = sparse_from == "question"
            through(ids, real, "question" if chosen else "", begin, chosen)
        fed = torch.cat([batch.last, batch.answer[:, :-1]], 1)
        through(fed, batch.real, "answer", self.asked - 1, True)

    @contextmanager
    def _observed(
        self,
        streams: Sequence[Stream],
        batch: QuestionRows,
        real: Tensor,
        steps: str,
        first: int,
        shadow: bool = False,
    ) -> Iterator[Observer | None]:
        """Judge what the streams select meanwhile, at steps of the question or of the answer."""
        unread = steps == "question" and self.observe in OF_ANSWERS
        if not self.observe or not steps or unread:
            yield None
            return
        wanted = None if self._wanted is None else self._wanted.slots(batch.numbers, real, steps)
        cells = sum(stream.rows for stream in streams) // len(batch.numbers)
        rows = None if wanted is None else wanted.repeat(cells, 1)
        observer = Observer.of(streams, real.shape[1], rows)
        yield observer
        each = self.observe in EACH
        self.fidelity += observer.tables(batch.numbers, real, first, each, steps, shadow)

    def _cuts(self, stream: Stream, batch: QuestionRows) -> bool:
        """Whether a stream that has read the true answers can go on from any place in them."""
        # The answer's first token is another where the question ends by itself.
        return stream.cuts and not any(self.prompt.questions[n].seam_ids for n in batch.numbers)

    def _said(
        self,
        streams: Sequence[Stream],
        again: Sequence[Stream | None],
        batch: QuestionRows,
        likeliest: Tensor,
    ) -> list[list[list[int]]]:
        """What is said greedily, for each cell and question; see `go_on`.

        The streams have read the true answers; `again` has those that must read their own from the start.
        """
        right = (likeliest == batch.answer) | ~batch.real
        wrong_at = right.int().cumprod(-1).sum(-1)  # the width where nothing is wrong
        said = [
            [self._begun(batch, row, *begun) for row, begun in enumerate(zip(*lists, strict=True))]
            for lists in zip(likeliest.tolist(), wrong_at.tolist(), strict=True)
        ]
        every = (row for rows in said for row in rows)
        lines = [
            line
            for stream, other in zip(streams, again, strict=True)
            if (line := self._line(stream, other, batch, list(islice(every, stream.rows))))
        ]
        go_on(lines, lambda some, ids: self._forward(some, ids, 1), self.model.device)
        return [[row.said[row.seam :] for row in rows] for rows in said]

    def _begun(self, batch: QuestionRows, row: int, likeliest: list[int], wrong: int) -> Row:
        """What a cell says to a question to begin with: all that is right, and its first mistake."""
        number = batch.numbers[row]
        most, seam = self._most(number), list(self.prompt.questions[number].seam_ids)
        begun = seam or likeliest[: min(wrong + 1, batch.lengths[row], most)]
        return Row(begun, most, len(seam), self.stops)

    def _line(
        self, stream: Stream, again: Stream | None, batch: QuestionRows, rows: list[Row]
    ) -> Line | None:
        """The rows of a stream that go on, as far as all of them have come; None where none does."""
        left = [n for n, row in enumerate(rows) if not row.ended]
        if not left:
            return None
        going, place = [rows[n] for n in left], min(len(rows[n].said) for n in left)
        stream = stream if again is None else again
        if len(left) < len(rows):
            stream = stream.fork(torch.tensor(left))
        if again is None:
            stream.cut(batch.question.shape[1] - 1 + place, self.prefix)
        else:
            last = batch.last.repeat(len(rows) // len(batch.numbers), 1)[left]
            own = torch.tensor([row.said[: place - 1] for row in going], device=last.device)
            self._forward([stream], torch.cat([last, own.long()], 1), 1)
        return Line(stream, going, place)

    def _forward(
        self,
        streams: Sequence[Stream],
        ids: Tensor,
        last: int,
        followers: Sequence[Stream] = (),
        watch: Observer | None = None,
    ) -> Tensor:
        if self._graphed is not None:
            return self._graphed.forward(streams, ids, last, followers, watch)
        return forward(self.model, self.prefix, streams, ids, last, followers, watch, self.asked)


def _need(prompt: Prompt) -> int:
    """How many slots a haystack, its longest question and its longest answer take."""
    numbers = range(len(prompt.questions))
    answers = (max(len(prompt.questions[n].answer_ids), prompt.most(n)) for n in numbers)
    return max(map(prompt.tokens, numbers)) + max(answers)


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
