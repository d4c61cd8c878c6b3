"""Steps of `generate` at fixed shapes, each the replay of one CUDA graph.

Such a step reads its token from tensors that stay where they are, and writes key, value and code at a
slot that stands on the device, into the room behind the cache and its indexes; it selects among the
slots up to that one. What the cache holds does not change before the step is done: one that fails
leaves no trace, and one that is run twice writes the same twice.
"""

from __future__ import annotations

import operator
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.utils.generic import ModelOutput

from topkit.errors import InputError
from topkit.experiments.decode.cache import Owner, room
from topkit.experiments.decode.reader import Call, Reader

# Arguments of a forward pass that a graph may hold for good.
CONSTANT = (bool, int, float, str, type(None))


@dataclass(frozen=True)
class Asked:
    """One token a row, as `generate` asks for it: ids [B, 1], positions [..., 1], all else constant."""

    cache: DynamicCache
    ids: Tensor
    positions: Tensor
    told: dict[str, Any]


@dataclass
class Captured:
    """What a graph reads and writes, at addresses that stay, and the graph where there is a GPU."""

    asked: Asked
    at: Tensor
    start: Tensor | None
    room: list[Tensor]
    mask: Tensor
    graph: torch.cuda.CUDAGraph | None = None
    output: Any = None

    def serves(self, asked: Asked, room: list[Tensor]) -> bool:
        """Whether this very graph gives the step that is asked for."""
        own = self.asked
        alike = own.cache is asked.cache and own.told == asked.told
        alike = alike and own.ids.shape == asked.ids.shape
        alike = alike and own.positions.shape == asked.positions.shape
        return alike and len(self.room) == len(room) and all(map(operator.is_, self.room, room))

    def fill(self, asked: Asked, length: int) -> None:
        """Put a token where the graph reads it, behind `length` slots."""
        self.asked.ids.copy_(asked.ids)
        self.asked.positions.copy_(asked.positions)
        self.at.fill_(length)


class Graphed:
    """Gives those steps of a model that fixed shapes can give, and leaves the others to its forward."""

    def __init__(
        self,
        owner: Owner,
        layers: list[int],
        model: nn.Module,
        forward: Callable[..., Any],
        reader: Reader,
    ) -> None:
        self._owner, self._layers, self._reader = owner, layers, reader
        self._model, self._forward = model, forward
        self._captured: Captured | None = None
        self._refused = False
        # The cache of the call before: a graph is worth its capture where steps follow one another.
        self._before: DynamicCache | None = None
        # Whose step the model's forward is running, and where its selections end.
        self._running: Captured | None = None
        self._stop: Tensor | None = None

    @staticmethod
    def can_serve(reader: Reader) -> bool:
        """Whether what is read through is chosen by the device alone, and looked at by nobody."""
        plain = reader.judged is None and not reader.budget.percent
        return plain and reader.backend == "triton" and reader.indexer.traits().fixed

    @property
    def at(self) -> Tensor | None:
        return None if self._running is None else self._running.at

    def forget(self) -> None:
        """Let go of the graph, and of the memory that it holds."""
        self._captured = self._before = None

    def step(self, given: dict[str, Any], prompt: int) -> Any:
        """The output of a step of `generate`, None where the model's own forward is to give it."""
        asked = None if self._refused else self._asked(given, prompt)
        before, self._before = self._before, None if asked is None else asked.cache
        if asked is None or asked.cache is not before:
            self._captured = None
            return None
        length = asked.cache.get_seq_length()
        room = self._room(asked.cache, length)
        if self._captured is not None and not self._captured.serves(asked, room):
            self._captured = None  # before the cache moves to more room
        if not room:
            return None
        try:
            if self._captured is None:
                self._captured = self._begun(asked, room, length)
            self._captured.fill(asked, length)
            output = self._run(self._captured)
        except Exception as error:  # whatever a model's forward may do
            self._refuse(error)
            return None
        for layer in asked.cache.layers:
            layer.reveal(length + 1)  # type: ignore[attr-defined]
        copied = {n: x.clone() if isinstance(x, Tensor) else x for n, x in output.items()}
        return type(output)(**copied)

    def attend(
        self,
        layer: int,
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
        scaling: float,
        inputs: Mapping[str, Any],
    ) -> Tensor:
        """The output [B, 1, Hq, Dv] of a layer's attention, where `at` is a slot; all room is given."""
        captured, reader = self._running, self._reader
        assert captured is not None
        held: Any = captured.asked.cache.layers[layer]
        followed = held.followed
        if [keys.data_ptr(), values.data_ptr()] != [x.data_ptr() for x in held.room()]:
            raise InputError(f"layer {layer} attends to other keys than it caches")
        assert self._stop is not None
        call = Call(layer, queries, keys, values, scaling, captured.start, inputs)
        new, followed.new = followed.new, None
        output = reader.read_at(followed.index, call, new, captured.at, self._stop)
        return output.transpose(1, 2).contiguous()

    def _asked(self, given: dict[str, Any], prompt: int) -> Asked | None:
        told = dict(given)
        names = ("input_ids", "position_ids", "attention_mask", "past_key_values")
        ids, positions, mask, cache = (told.pop(name, None) for name in names)
        if type(cache) is not DynamicCache or cache.offloading:
            return None
        length = cache.get_seq_length()
        if len(cache.layers) != len(self._layers) or length < prompt:
            return None
        if not isinstance(ids, Tensor) or ids.shape[1:] != (1,) or ids.dtype != torch.int64:
            return None
        # A model that is not told positions counts them on the host.
        if not isinstance(positions, Tensor) or positions.shape[-1:] != (1,):
            return None
        # Of the mask only its size is looked at: where rows begin was read at the step before.
        if mask is not None and getattr(mask, "shape", None) != (len(ids), length + 1):
            return None
        if told.get("output_attentions") or told.get("output_hidden_states"):
            return None
        if any(not isinstance(x, CONSTANT) for x in told.values()):
            return None
        if self._model.training or torch.is_grad_enabled():
            return None
        if torch.is_autocast_enabled(ids.device.type):  # its casts of the weights do not last
            return None
        return Asked(cache, ids, positions, told)

    def _room(self, cache: DynamicCache, length: int) -> list[Tensor]:
        """The buffers of all layers, none where one has no place for a slot more."""
        found = []
        for layer in cache.layers:
            own = room(layer, self._owner, length)
            if not own:
                return []
            found += own
        return found

    def _begun(self, asked: Asked, room: list[Tensor], length: int) -> Captured:
        device = asked.ids.device
        if any(x.device != device for x in room):
            raise InputError("its layers are on several devices")
        own = Asked(asked.cache, asked.ids.clone(), asked.positions.clone(), asked.told)
        at = torch.full((1,), length, device=device)
        start = asked.cache.layers[0].followed.start  # type: ignore[attr-defined]
        # Made already, as transformers sees it, which then makes none; `attend` has no use for one.
        mask = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=device)
        captured = Captured(own, at, start, room, mask)
        if device.type == "cuda":
            with torch.cuda.device(device):
                self._capture(captured, _side(torch.cuda.current_device()))
        return captured

    def _run(self, captured: Captured) -> Any:
        if captured.graph is None:
            return self._call(captured)
        captured.graph.replay()
        return captured.output

    def _call(self, captured: Captured) -> Any:
        """The output of the model's own forward, at fixed shapes."""
        own, self._running = captured.asked, captured
        try:
            self._stop = captured.at[None] + 1
            output = self._forward(
                input_ids=own.ids,
                position_ids=own.positions,
                attention_mask=captured.mask,
                past_key_values=own.cache,
                **own.told,
            )
        finally:
            self._running = self._stop = None
        values = output.values() if isinstance(output, ModelOutput) else [None]
        if any(not isinstance(x, Tensor) and x is not own.cache for x in values):
            raise InputError("its output holds more than tensors")
        return output

    def _capture(self, captured: Captured, side: torch.cuda.Stream) -> None:
        current = torch.cuda.current_stream()
        # Once to compile and to make workspaces; what waits for the GPU is found here, since a capture
        # that fails is hard to clean up after.
        side.wait_stream(current)
        try:
            with torch.cuda.stream(side), _refusing_to_wait():
                self._call(captured)
        finally:
            current.wait_stream(side)
        graph, pool = torch.cuda.CUDAGraph(), torch.cuda.graph_pool_handle()
        how: Any = {"pool": pool, "stream": side, "capture_error_mode": "thread_local"}
        try:
            # The outer context gives the stream back where a capture fails.
            with torch.cuda.stream(current), torch.cuda.graph(graph, **how):
                captured.output = self._call(captured)
        except Exception as error:
            _recover(pool)
            raise InputError(str(error.__context__ or error)) from error
        captured.graph = graph

    def _refuse(self, error: Exception) -> None:
        self.forget()
        self._refused = True
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        warnings.warn(
            f"steps of {type(self._model).__name__} run one kernel at a time, for they cannot be "
            f"captured in a CUDA graph: {reason}",
            stacklevel=2,
        )


@cache
def _side(device: int) -> torch.cuda.Stream:
    """The stream that graphs are captured on: one, since libraries keep a workspace for each."""
    return torch.cuda.Stream(device)


@contextmanager
def _refusing_to_wait() -> Iterator[None]:
    """To wait for the GPU is an error in here, as it is where a graph is captured."""
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that this mode does not know all that waits
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


def _recover(pool: Any) -> None:
    """Undo what a capture that failed leaves: a pool that is allocated from, a generator that records."""
    with suppress(Exception):
        torch._C._cuda_endAllocateToPool(torch.cuda.current_device(), pool)  # type: ignore[attr-defined]
    # The end of a capture that succeeds sets the generator free.
    with suppress(Exception), torch.cuda.graph(torch.cuda.CUDAGraph()):
        torch.zeros(1, device="cuda")
