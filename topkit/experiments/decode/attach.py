"""An indexer plugged into a model's decoding: attention reads the keys that it selects, and no others."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from topkit.errors import InputError
from topkit.experiments.decode.attachable import attachable, decode_once
from topkit.experiments.decode.cache import CacheOwner, LayerIndex, index_over
from topkit.experiments.decode.cuda_graph import CapturedDecoding
from topkit.experiments.decode.observer import Observer
from topkit.experiments.decode.padding import Padding
from topkit.experiments.decode.prompt import Prompt
from topkit.experiments.decode.reader import Call, Reader
from topkit.experiments.model.attention import switched_attention
from topkit.experiments.model.attention_call import AttentionCall
from topkit.experiments.model.finite import require_finite
from topkit.indexers.base import Indexer
from topkit.indexers.budget import Budget, parse_budget
from topkit.indexers.spec import parse
from topkit.kernels.backend import resolve


def attach(
    model: PreTrainedModel,
    indexer: str | Indexer,
    k: int | str | Budget,
    *,
    layers: Iterable[int] | None = None,
    observe: bool | str = False,
    sparse_prefill: bool = False,
    seed: int = 0,
    backend: str = "auto",
    cuda_graph: bool | None = None,
    capture: bool | None = None,
) -> Attachment:
    """Let a transformers model decode through an indexer, until `detach` or the end of a `with`.

    The prompt attends densely (unless `sparse_prefill`); each later token reads at most k keys a
    head, in every layer of full attention or in `layers`. k in keys, or per cent of the slots at
    that step ("1%"). A cache grows in place meanwhile: keep a state of it by deepcopy, not by its
    tensors. In `generate` the prompt is its input; in direct calls of the model,
    what comes several tokens at a time or into an empty cache. `observe=True` judges every selection
    (`Attachment.fidelity`); `observe="shadow"` does so too, and leaves the output dense.
    `backend` is that of topkit.kernels: "auto" takes Triton's where it can; "triton" takes no other,
    is tried out on a few tokens at once, and never waits for the GPU to look at what comes in (NaN
    then goes on to the output).
    `cuda_graph` (by default True): with "triton", a CUDA graph holds the steps of `generate` where the
    indexer (`fixed`) and the model allow it, and hooks inside of the model are not called; False runs
    them kernel by kernel. `capture` is its old name.
    Raises: InputError for a model, layer, cache or mask that it would not serve rightly.
    """
    recipe, budget = parse(indexer), parse_budget(k)
    if observe not in (True, False, "shadow"):
        raise InputError(f'observe must be True, False or "shadow"; got {observe!r}')
    graphs = _cuda_graph(cuda_graph, capture)
    modules = attachable(model, recipe, layers)
    resolve(backend, next(model.parameters()))
    how = (modules, observe == "shadow", sparse_prefill)
    if backend == "triton":
        reader = Reader(recipe, budget, seed, None, backend)
        with Attachment(model, reader, *how, cuda_graph=False):
            decode_once(model)
    judged = Observer(recipe, budget) if observe else None
    return Attachment(model, Reader(recipe, budget, seed, judged, backend), *how, graphs)


class Attachment:
    """A model that decodes through an indexer; as a context manager it detaches at the end.

    `layers` are the numbers of the layers that do; `captured` counts the steps of `generate` that were
    run at fixed shapes: by a CUDA graph, on a GPU.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        reader: Reader,
        modules: dict[int, nn.Module],
        shadow: bool,
        sparse_prefill: bool,
        cuda_graph: bool,
    ) -> None:
        self.layers, self.captured = sorted(modules), 0
        self._modules = frozenset(modules.values())
        self._reader, self._shadow, self._sparse_prefill = reader, shadow, sparse_prefill
        self._owner, self._padding, self._prompt = CacheOwner(), Padding(), Prompt()
        self._decoding: CapturedDecoding | None = None
        with ExitStack() as undo:
            undo.enter_context(
                switched_attention(model, self._attend, inputs=True, evaluation=False)
            )
            undo.callback(self._owner.release)
            if hasattr(model, "generate"):
                undo.enter_context(_replaced(model, "generate", self._generate))
                if cuda_graph and not sparse_prefill and CapturedDecoding.can_serve(reader):
                    self._decoding = CapturedDecoding(
                        self._owner, self.layers, model, model.forward, reader
                    )
                    undo.enter_context(_replaced(model, "forward", self._forward))
            self._undo = undo.pop_all()

    def detach(self) -> None:
        """Give the model its own attention back, and caches their own layers; twice is once."""
        self._undo.close()
        self._decoding = None

    def __enter__(self) -> Attachment:
        return self

    def __exit__(self, *_: object) -> None:
        self.detach()

    def fidelity(self) -> pa.Table:
        """The rows observed so far: one a call of generate, row of the batch, layer, head, position.

        Positions count from a row's first real token; rows that have ended go on with padding.
        Raises: InputError without `observe`.
        """
        if self._reader.judged is None:
            raise InputError("nothing was observed; attach with observe=True")
        return self._reader.judged.table()

    def _attend(self, call: AttentionCall) -> Tensor:
        """The output [B, t, Hq, Dv] of a call of the model's attention, by the indexer or dense."""
        if call.module not in self._modules:
            return call.dense()
        needs = self._reader.indexer.needs
        inputs = {name: x for name, x in call.inputs.items() if name in needs}
        if self._decoding is not None and self._owner.slot is not None:
            return self._decoding.attend(call, inputs)
        return self._read(call, inputs)

    def _read(self, call: AttentionCall, inputs: dict[str, Any]) -> Tensor:
        count, length = call.queries.shape[2], call.keys.shape[2]
        before = length - count
        layer = self._layer_index(call, before)
        prompt = 0 if self._sparse_prefill else self._prompt.tokens(before, count)
        positions = call.options.get("position_ids")
        start = self._padding.start(call.mask, positions, count, length)
        new = {"keys": call.keys[:, :, before:], "values": call.values[:, :, before:]}
        if self._reader.backend != "triton":
            tensors = {"queries": call.queries, **new}
            require_finite(f"layer {call.layer}", tensors, start, before)
        inputs |= {"values": new["values"]}
        now = Call(call.layer, call.queries, call.keys, call.values, call.scaling, start, inputs)
        with torch.no_grad():
            self._reader.take(layer, now, prompt)
        outputs = []
        if prompt or self._shadow:
            dense = call.dense()
            outputs = [dense if self._shadow else dense[:, :prompt]]
        if prompt < count:
            sparse = self._reader.read(layer, now, prompt, not self._shadow)
            if sparse is not None:
                outputs.append(sparse.transpose(1, 2))
        layer.valid, layer.start = length, start
        return outputs[0].contiguous() if len(outputs) == 1 else torch.cat(outputs, 1)

    def _layer_index(self, call: AttentionCall, before: int) -> LayerIndex:
        """The index over the layer's cache, which had `before` slots before the call."""
        cache, number = call.cache, call.layer
        if cache is None:  # without a cache every call brings all tokens
            return LayerIndex(self._owner)
        if number >= len(getattr(cache, "layers", ())):
            raise InputError(f"attach follows a DynamicCache; got a {type(cache).__name__}")
        layer = index_over(cache.layers[number], self._owner)
        if layer.index is not None and layer.valid != before:
            raise InputError(
                f"the index of layer {number} has {layer.valid} slots and its cache {before}: the "
                "cache was changed in a way that attach does not follow"
            )
        return layer

    def _generate(
        self, own: Callable[..., Any], inputs: Any = None, *args: Any, **kwargs: Any
    ) -> Any:
        """The model's own generate, whose prompt is known while it runs."""
        if self._reader.judged is not None:
            self._reader.judged.call += 1
        try:
            with self._prompt.of(inputs, kwargs):
                return own(inputs, *args, **kwargs)
        finally:
            if self._decoding is not None:
                self._decoding.forget()

    def _forward(self, own: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """The model's own forward, or in `generate` the same step at fixed shapes."""
        prompt, output = self._prompt.length, None
        if self._decoding is not None and prompt is not None and not args:
            output = self._decoding.step(kwargs, prompt)
        if output is None:
            return own(*args, **kwargs)
        self.captured += 1
        return output


def _cuda_graph(cuda_graph: bool | None, capture: bool | None) -> bool:
    if capture is not None:
        if cuda_graph is not None:
            raise InputError("capture is the old name of cuda_graph; give cuda_graph alone")
        warnings.warn("attach(capture=) is now cuda_graph=", FutureWarning, stacklevel=3)
        cuda_graph = capture
    if cuda_graph is not None and not isinstance(cuda_graph, bool):
        raise InputError(f"cuda_graph must be True or False; got {cuda_graph!r}")
    return cuda_graph is not False


@contextmanager
def _replaced(model: nn.Module, name: str, method: Callable[..., Any]) -> Iterator[None]:
    """A method of this one model is `method`, which gets the model's own as its first argument."""
    own, before = getattr(model, name), vars(model).get(name)

    @functools.wraps(own)
    def call(*args: Any, **kwargs: Any) -> Any:
        return method(own, *args, **kwargs)

    setattr(model, name, call)
    try:
        yield
    finally:
        delattr(model, name)
        if before is not None:
            setattr(model, name, before)
