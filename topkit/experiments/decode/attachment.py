"""A model while it decodes through an indexer: what its attention, `generate` and forward do."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pyarrow as pa
from torch import Tensor, nn
from transformers import PreTrainedModel

from topkit.errors import InputError
from topkit.experiments.decode.cuda_graph import CapturedDecoding
from topkit.experiments.decode.layer_attention import LayerAttention
from topkit.experiments.decode.layer_index import CacheOwner
from topkit.experiments.decode.prompt import Prompt, Slot, length_of, parse_slot
from topkit.experiments.decode.reader import Reader
from topkit.experiments.decode.running import Running
from topkit.experiments.model.attention import switched_attention, switches
from topkit.experiments.model.attention_call import AttentionCall
from topkit.experiments.model.copies import hook, replaced
from topkit.kernels import checks


class Attachment:
    """A model that decodes through an indexer; as a context manager it detaches at the end.

    `layers` are the numbers of the layers that do; `captured` counts the steps of `generate` that were
    run at fixed shapes: by a CUDA graph, on a GPU; `outline` is the model in one line.
    """

    outline = ""

    def __init__(
        self,
        model: PreTrainedModel,
        reader: Reader,
        modules: dict[int, nn.Module],
        shadow: bool,
        slot: Slot,
        cuda_graph: bool,
    ) -> None:
        self.layers, self.captured = sorted(modules), 0
        self._model, self._modules = model, frozenset(modules.values())
        self._reader, self._owner, self._prompt = reader, CacheOwner(), Prompt(slot)
        self._layers = LayerAttention(reader, self._owner, self._prompt, shadow)
        self._running, self._attached, self._entered = Running(), True, False
        # Of calls so far, for `_warn`.
        self._called, self._ends_named = False, slot is not None
        self._generates = hasattr(model, "generate")
        self._decoding: CapturedDecoding | None = None
        with ExitStack() as undo:
            undo.enter_context(
                switched_attention(
                    model, self._attend, inputs=True, evaluation=False, bound=self._modules
                )
            )
            undo.callback(self._owner.release)
            # The decoder within, too: it may be called by itself.
            for part in model.modules():
                if isinstance(part, PreTrainedModel):
                    undo.enter_context(hook(part, "forward_pre_hook", self._enter))
                    undo.enter_context(hook(part, "forward_hook", self._leave, always_call=True))
            if self._generates:
                undo.enter_context(replaced(model, "generate", self._generate))
                if cuda_graph and CapturedDecoding.can_serve(reader):
                    self._decoding = CapturedDecoding(
                        self._owner, self.layers, model, model.forward, reader
                    )
                    undo.enter_context(replaced(model, "forward", self._forward))
            self._undo = undo.pop_all()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self.outline}>"

    @staticmethod
    def of(model: nn.Module) -> Attachment:
        """The attachment of a model, where what `attach` gave is lost.

        Raises: InputError for a model that is not attached.
        """
        parts = set(model.modules())
        for switch in switches():
            owner = getattr(switch.attend, "__self__", None)
            if isinstance(owner, Attachment) and parts & switch.modules:
                return owner
        raise InputError(f"this {type(model).__name__} is not attached")

    def detach(self) -> None:
        """Give the model its own attention back, and caches their own layers; twice is once.

        Warns where nothing was ever selected.
        Raises: InputError while another thread runs the model.
        """
        self._detach()
        self._warn()

    def __enter__(self) -> Attachment:
        self._require_attached()
        if self._entered:
            raise InputError("this attachment is in a `with` already, whose end detaches")
        self._entered = True
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._entered = False
        self._detach()
        if kind is None:
            self._warn()

    @contextmanager
    def sparse_from(self, slot: Any) -> Iterator[None]:
        """In here this thread's calls are as under `attach(..., sparse_from_slot=slot)`."""
        self._require_attached()
        self._ends_named = True
        with self._prompt.until(parse_slot(slot)):
            yield

    @contextmanager
    def generating(self, prompt: int) -> Iterator[None]:
        """In here this thread's calls are as those of `generate` behind a prompt of so many slots.

        For decoding loops of one's own, whose steps are then captured in a CUDA graph as well.
        """
        self._require_attached()
        with self._behind(checks.whole("prompt", prompt)):
            yield

    def fidelity(self) -> pa.Table:
        """The rows observed so far: one a call of generate, row of the batch, layer, head, position.

        Positions count from a row's first real token; rows that have ended go on with padding.
        Raises: InputError without `observe`.
        """
        if self._reader.judged is None:
            raise InputError("nothing was observed; attach with observe=True")
        return self._reader.judged.table()

    def _require_attached(self) -> None:
        if not self._attached:
            name = type(self._model).__name__
            raise InputError(f"this attachment to {name} was detached; attach again")

    def _detach(self) -> None:
        with self._running.no_other():
            self._attached = False
            self._undo.close()
            self._decoding = None

    def _warn(self) -> None:
        """Say once why nothing was selected until now, where nothing was."""
        if self._layers.selected:
            return
        self._layers.selected = True
        if not self._called:
            why = "no call of it came; was another object called, a copy or a wrapper?"
        elif self._ends_named:
            why = "all tokens stood before the slot from which they are sparse"
        else:
            why = (
                "each call brought a prompt, which attends densely (several tokens at once, or an "
                "empty cache); sparse_from_slot= makes whole forward passes sparse from a slot on"
            )
        name, indexer = type(self._model).__name__, self._reader.indexer
        warnings.warn(
            f"{indexer} selected nothing while {name} was attached: {why}",
            stacklevel=3,
        )

    def _enter(self, part: nn.Module, *_: Any) -> None:
        self._running.enter()
        if self._generates and part is self._model and "generate" not in vars(part):
            raise InputError(
                "generate of the attached model was deleted, which knew where prompts end; detach, "
                "and attach again"
            )

    def _leave(self, *_: Any) -> None:
        self._running.leave()

    def _attend(self, call: AttentionCall) -> Tensor:
        """The output [B, t, Hq, Dv] of a call of the model's attention, by the indexer or dense."""
        if call.module not in self._modules:
            return call.dense()
        self._called = True
        inputs = call.given(self._reader.indexer.needs)
        if self._decoding is not None and self._owner.slot is not None:
            return self._decoding.attend(call, inputs)
        return self._layers.attend(call, inputs)

    def _generate(
        self, own: Callable[..., Any], inputs: Any = None, *args: Any, **kwargs: Any
    ) -> Any:
        """The model's own generate, whose prompt is known while it runs."""
        with self._running.here():
            if not self._attached:  # another method on top still calls this one
                return own(inputs, *args, **kwargs)
            if self._reader.judged is not None:
                self._reader.judged.begin()
            with self._behind(length_of(inputs, kwargs)):
                return own(inputs, *args, **kwargs)

    @contextmanager
    def _behind(self, prompt: int) -> Iterator[None]:
        """Calls in here are steps behind a prompt of so many slots; a graph of theirs ends with them."""
        try:
            with self._prompt.of(prompt):
                yield
        finally:
            if self._decoding is not None:
                self._decoding.forget()

    def _forward(self, own: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """The model's own forward, or in `generate` the same step at fixed shapes."""
        prompt, output = self._prompt.stop, None
        if self._decoding is not None and prompt is not None and not args:
            output = self._decoding.step(kwargs, prompt)
        if output is None:
            return own(*args, **kwargs)
        self.captured += 1
        return output
