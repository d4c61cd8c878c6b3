"""One haystack's rows: the fixed ones by token steps, the others by passes of their own beside them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import groupby
from typing import Any, cast

import torch
from torch import Tensor
from transformers import PreTrainedModel

from topkit.errors import InputError, memory_is_full
from topkit.experiments.decode.graph_capture import CannotCapture
from topkit.experiments.evaluate.batch import Asked, Watch
from topkit.experiments.evaluate.built import Built
from topkit.experiments.evaluate.lists import Lists
from topkit.experiments.evaluate.observer import Observer
from topkit.experiments.evaluate.shared_prefix import forward
from topkit.experiments.evaluate.stepped.beside import Run, side_by_side
from topkit.experiments.evaluate.stepped.fixed_rows import FixedRows
from topkit.experiments.evaluate.stepped.fixed_streams import FixedStream, fixed_streams, grow
from topkit.experiments.evaluate.stepped.groups import Way, is_fixed, is_hosted, refused, together
from topkit.experiments.evaluate.stepped.hosted import (
    HostedRows,
    HostedStream,
    hosted_streams,
    whole_pass,
)
from topkit.experiments.evaluate.stepped.noted import judge, require_choices
from topkit.experiments.evaluate.stepped.token_steps import TokenSteps, keep, steps_of
from topkit.experiments.evaluate.streams import Stream
from topkit.experiments.runs.cells import Cell


class Graphed:
    """Gives what `shared_prefix.forward` gives, of streams that come as `streams` has them."""

    def __init__(
        self,
        model: PreTrainedModel,
        built: Built,
        cells: Sequence[Cell],
        questions: int,
        context: int,
        need: int,
        sparse_from: str,
    ) -> None:
        """need: how many slots there will be.

        Raises: InputError where their buffers have no room.
        """
        self.model, self.built = model, built
        self.prefix, self.context = built.prefix, context
        fixed = tuple(cell for cell in cells if is_fixed(cell) for _ in range(questions))
        wanted: dict[tuple[Cell, ...], type[FixedRows]] = {fixed: FixedRows}
        self._own = [cell for cell in cells if is_hosted(cell, sparse_from)]
        hosted = tuple(cell for cell in self._own for _ in range(questions))
        if hosted:
            wanted[hosted] = HostedRows
        self._kept = steps_of(model, wanted, context, built, need)
        self._fixed, self._hosted = self._kept[fixed], self._kept.get(hosted)
        self._questions = questions

    def keep(self) -> None:
        """Leave the steps to the next haystack."""
        keep(self.model, self._kept)

    def streams(self) -> list[Stream]:
        """The streams of fixed rows, and those whose hosts choose."""
        streams: list[Stream] = [*self.fixed()]
        if self._hosted is not None:
            own = [
                self.built.stream(list(some), self._questions, self.context)
                for _, some in groupby(self._own, together)
            ]
            streams += hosted_streams(cast("HostedRows", self._hosted.rows), own)
        return streams

    def fixed(self) -> list[FixedStream]:
        """The streams of fixed rows."""
        return fixed_streams(self._fixed.rows, self.built, self._fixed.cells, self.context)

    def in_shadow(
        self, streams: Sequence[FixedStream], ids: Tensor, watch: Observer | None, one_by_one: bool
    ) -> Callable[[], Tensor]:
        """Let full attention read tokens [Q, t], and `fixed` streams select for its queries, if that is watched.

        one_by_one: whether their indexes grow as those that select meanwhile. What is given waits.
        """
        rows = ids.repeat(self._fixed.rows.count // len(ids), 1)
        way = Way.DENSE if watch is None else Way.SHADOW
        own = None if watch is None else (watch, 0)
        return self._replayed(self._fixed, streams, rows, 1, own, way, at_once=not one_by_one)

    def forward(
        self,
        streams: Sequence[Stream],
        ids: Tensor,
        last: int,
        followers: Sequence[Stream] = (),
        watch: Observer | None = None,
    ) -> Tensor:
        """As `shared_prefix.forward`."""
        if followers:
            return self._read_dense([*streams, *followers], ids)
        runs, first = list[Run](), 0
        one_by_one = watch is None and ids.shape[1] == 1
        for steps, some in self._runs(streams, one_by_one):
            rows = slice(first, first + sum(stream.rows for stream in some))
            if steps is None:
                behind = None if watch is None else _numbered_from(first, watch)
                runs.append(partial(self._whole, some, ids[rows], last, (), behind))
            else:
                own = None if watch is None else (watch, first)
                runs.append(partial(self._replayed, steps, some, ids[rows], last, own))
            first = rows.stop
        return torch.cat(side_by_side(runs, self._fixed.rows.device))

    def _runs(
        self, streams: Sequence[Stream], one_by_one: bool
    ) -> Iterator[tuple[TokenSteps | None, list[Any]]]:
        """The streams that go together, and whose steps do it; None for a whole pass.

        Hosts choose between graphs only where tokens come `one_by_one`.
        """

        def home(stream: Stream) -> TokenSteps | None:
            if isinstance(stream, HostedStream):
                return self._hosted if one_by_one else None
            return self._fixed if isinstance(stream, FixedStream) else None

        for steps, some in groupby(streams, home):
            yield steps, list(some)

    def _whole(
        self,
        streams: Sequence[Stream],
        ids: Tensor,
        last: int,
        followers: Sequence[Stream] = (),
        watch: Watch | None = None,
    ) -> Tensor:
        with whole_pass([*streams, *followers], self.prefix):
            return forward(self.model, self.prefix, streams, ids, last, followers, watch)

    def _read_dense(self, streams: Sequence[Stream], ids: Tensor) -> Tensor:
        """Let all streams read what full attention reads, of tokens [B, t] of the questions."""
        runs = list[Run]()
        for steps, some in self._runs(streams, False):
            if steps is None:
                dense = Stream([Cell()] * len(ids), self.context, {}, self.built.seed)
                runs.append(partial(self._whole, [dense], ids, 1, some))
            else:
                rows = ids.repeat(sum(stream.rows for stream in some) // len(ids), 1)
                runs.append(partial(self._replayed, steps, some, rows, 1, None, Way.DENSE))
        return side_by_side(runs, self._fixed.rows.device)[0][: len(ids)]

    def _replayed(
        self,
        steps: TokenSteps,
        streams: Sequence[FixedStream],
        ids: Tensor,
        last: int,
        watch: tuple[Observer, int] | None,
        way: Way = Way.SPARSE,
        at_once: bool | None = None,
    ) -> Callable[[], Tensor]:
        """Step through tokens [r, t]; what is given waits, and gives the logits [r, last, V] of the last.

        at_once: whether indexes take them so, as by default those do that select nothing.
        """
        at_once = way is Way.DENSE if at_once is None else at_once
        rows, count, length = steps.rows, ids.shape[1], streams[0].length
        places = torch.arange(length, length + count, device=ids.device)
        logits = list[Tensor]()
        parts = [slice(n, min(n + rows.steps, count)) for n in range(0, count, rows.steps)]

        def look(part: slice) -> None:
            stops = places[part] + 1
            if way is not Way.DENSE:
                require_choices(rows, stops)
            if watch is not None:
                judge(rows, self.prefix, part.start, stops, *watch)

        for n, part in enumerate(parts):
            if n:
                look(parts[n - 1])
            logits += self._launched(steps, streams, ids, length, part, last, way)

        def finish() -> Tensor:
            look(parts[-1])
            for stream in streams:
                stream.length = length + count
                # Of own words, which come one by one, nobody asks how many bytes they make.
                if watch is not None or way is Way.DENSE or count > 1:
                    grow(rows, stream, self.prefix, at_once)
            whole = torch.cat(logits, 1)
            rows.require_finite()
            if whole.amax().isnan():
                raise InputError("its logits hold NaN")
            return whole

        return finish

    def _launched(
        self,
        steps: TokenSteps,
        streams: Sequence[FixedStream],
        ids: Tensor,
        length: int,
        part: slice,
        last: int,
        way: Way,
    ) -> Iterator[Tensor]:
        """Step through a part of the tokens, and give the logits [r, 1, V] of those among the last."""
        rows = steps.rows
        numbers = torch.tensor([n for one in streams for n in one.numbers], device=ids.device)
        for n in range(part.start, part.stop):
            rows.at.fill_(length + n)
            rows.place.fill_(n - part.start)
            # The other rows read once more what they have read at this place, and write the same.
            rows.read[numbers, length + n] = ids[:, n]
            steps.ids.copy_(rows.read[:, length + n, None])
            rows.stand(streams, length + n)
            step = steps.step(self.model, way)
            if n >= ids.shape[1] - last:
                yield step[numbers]


def refuse(model: PreTrainedModel, error: Exception) -> None:
    """Step a model no more, and warn that it runs kernel by kernel; but for bad input, which is said there.

    A memory that is full, of which another process may leave some, is tried again by the next haystack.
    """
    if isinstance(error, InputError) and not isinstance(error, CannotCapture):
        return
    if not any(map(memory_is_full, _with_causes(error))):
        refused.add(model)
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    warnings.warn(
        f"steps of {type(model).__name__} run one kernel at a time, for they cannot be captured in a "
        f"CUDA graph: {reason}",
        stacklevel=2,
    )


def _with_causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error and those behind it: a capture that is given up says why in words alone."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _numbered_from(first: int, watch: Watch) -> Watch:
    """An observer of rows that stand behind `first` others."""

    def behind(asked: Asked, lists: Lists, output: Tensor) -> None:
        watch(asked, replace(lists, numbers=[first + number for number in lists.numbers]), output)

    return behind
