"""Steps of `generate` at fixed shapes, each the replay of one CUDA graph.

Such a step reads its token from tensors that stay where they are, and writes key, value and code at a
slot that stands on the device, into the room behind the cache and its indexes; it selects among the
slots up to that one. What the cache holds does not change before the step is done: one that fails
leaves no trace, and one that is run twice writes the same twice.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.utils.generic import ModelOutput

from topkit.errors import InputError
from topkit.experiments.decode.cache import rooms
from topkit.experiments.decode.captured_step import CapturedStep
from topkit.experiments.decode.graph_capture import capture
from topkit.experiments.decode.layer_index import CacheOwner
from topkit.experiments.decode.reader import Call, Reader
from topkit.experiments.decode.token_step import TokenStep
from topkit.experiments.model.attention_call import AttentionCall
from topkit.indexers.lasting import held


class CapturedDecoding(threading.local):
    """Gives those steps of a model that fixed shapes can give, and leaves the others to its forward.

    While it gives one, the slot that it writes stands at the owner of its cache. Each thread has steps
    of its own.
    """

    def __init__(
        self,
        owner: CacheOwner,
        layers: list[int],
        model: nn.Module,
        forward: Callable[..., Any],
        reader: Reader,
    ) -> None:
        self._owner, self._layers, self._reader = owner, layers, reader
        self._model, self._forward = model, forward
        self._captured: CapturedStep | None = None
        self._refused = False
        # The cache of the call before: a graph is worth its capture where steps follow one another.
        self._before: DynamicCache | None = None
        # Whose step the model's forward is running, and where its selections end.
        self._running: CapturedStep | None = None
        self._stop: Tensor | None = None

    @staticmethod
    def can_serve(reader: Reader) -> bool:
        """Whether what is read through is chosen by the device alone, and looked at by nobody."""
        plain = reader.judged is None and not reader.budget.percent
        own = reader.indexer.traits().fixed and "upstream" not in reader.indexer.needs
        return plain and reader.backend == "triton" and own

    def forget(self) -> None:
        """Let go of the graph, and of the memory that it holds."""
        self._captured = self._before = None

    def step(self, kwargs: Mapping[str, Any], prompt: int) -> Any:
        """The output of a step of `generate`, None where the model's own forward is to give it."""
        token = self._token(kwargs, prompt)
        before, self._before = self._before, None if token is None else token.cache
        if token is None or token.cache is not before:
            self._captured = None
            return None
        length = token.cache.get_seq_length()
        room = self._room(token.cache, length)
        if self._captured is not None and not self._captured.serves(token, room):
            self._captured = None  # before the cache moves to more room
        if not room:
            return None
        try:
            if self._captured is None:
                self._captured = self._capture(CapturedStep.of(token, room, length))
            self._captured.fill(token, length)
            output = self._run(self._captured)
        except Exception as error:  # whatever a model's forward may do
            self._refuse(error)
            return None
        for layer in token.cache.layers:
            layer.reveal(length + 1)  # type: ignore[attr-defined]
        copies = {n: x.clone() if isinstance(x, Tensor) else x for n, x in output.items()}
        return type(output)(**copies)

    def attend(self, call: AttentionCall, inputs: Mapping[str, Any]) -> Tensor:
        """The output [B, 1, Hq, Dv] of a layer's attention in the step; keys and values are all room."""
        step, stop = self._running, self._stop
        assert step is not None and stop is not None
        queries, keys, values = call.queries, call.keys, call.values
        layer: Any = step.token.cache.layers[call.layer]
        if [keys.data_ptr(), values.data_ptr()] != [x.data_ptr() for x in layer.room()]:
            raise InputError(f"layer {call.layer} attends to other keys than it caches")
        tensors = (queries, keys, values)
        now = Call(call.layer, *tensors, call.scaling, step.start, inputs, call.softmax)
        over = layer.layer_index
        new, over.new = over.new, None
        return (
            self._reader.read_at(over.index, now, new, step.slot, stop).transpose(1, 2).contiguous()
        )

    def _token(self, kwargs: Mapping[str, Any], prompt: int) -> TokenStep | None:
        """The step that these arguments ask for, None where fixed shapes cannot give it."""
        if self._refused or self._model.training or torch.is_grad_enabled():
            return None
        token = TokenStep.of(kwargs)
        if token is None or token.cache.get_seq_length() < prompt:
            return None
        if len(token.cache.layers) != len(self._layers):
            return None
        if torch.is_autocast_enabled(token.ids.device.type):  # its casts of the weights do not last
            return None
        return token

    def _room(self, cache: DynamicCache, length: int) -> list[Tensor]:
        """The buffers of all layers, none where one has no place for a slot more."""
        room = []
        for layer in cache.layers:
            own = rooms(layer, self._owner, length)
            if not own:
                return []
            room += own
        return room

    def _capture(self, step: CapturedStep) -> CapturedStep:
        if step.slot.device.type == "cuda":
            with held() as step.held:
                step.graph, step.output = capture(lambda: self._call(step), step.slot.device)
        return step

    def _run(self, step: CapturedStep) -> Any:
        if step.graph is None:
            return self._call(step)
        step.graph.replay()
        return step.output

    def _call(self, step: CapturedStep) -> Any:
        """The output of the model's own forward, at fixed shapes."""
        token, self._running, self._owner.slot = step.token, step, step.slot
        try:
            self._stop = step.slot[None] + 1
            output = self._forward(
                input_ids=token.ids,
                position_ids=token.positions,
                attention_mask=step.mask,
                past_key_values=token.cache,
                **token.constants,
            )
        finally:
            self._running = self._stop = self._owner.slot = None
        values = output.values() if isinstance(output, ModelOutput) else [None]
        if any(not isinstance(x, Tensor) and x is not token.cache for x in values):
            raise InputError("its output holds more than tensors")
        return output

    def _refuse(self, error: Exception) -> None:
        self.forget()
        self._refused = True
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        warnings.warn(
            f"steps of {type(self._model).__name__} run one kernel at a time, for they cannot be "
            f"captured in a CUDA graph: {reason}",
            stacklevel=2,
        )
