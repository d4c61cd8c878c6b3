"""An indexer plugged into a model's decoding: attention reads the keys that it selects, and no others."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from contextlib import ExitStack
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

import pyarrow as pa
import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from topkit.errors import InputError
from topkit.experiments.decode.cache import Followed, follow, leave
from topkit.experiments.decode.cuda_graph import Graphed
from topkit.experiments.decode.observer import Observer
from topkit.experiments.decode.padding import Padding
from topkit.experiments.decode.reader import Call, Reader
from topkit.experiments.model.attention import Inputs, inputs_of, switched, taken
from topkit.experiments.model.compatibility import PROBED, probe, unserved
from topkit.experiments.model.finite import require_finite
from topkit.experiments.model.record import within
from topkit.indexers.base import Indexer
from topkit.indexers.budget import Budget, parse_budget
from topkit.indexers.spec import parse
from topkit.kernels.backend import resolve

NAME = "topkit_attach"


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
    capture: bool = True,
) -> Attachment:
    """Let a transformers model decode through an indexer, until `detach` or the end of a `with`.

    The prompt attends densely (unless `sparse_prefill`); each later token reads at most k keys a
    head, in every layer of full attention or in `layers`. k in keys, or per cent of the slots at
    that step ("1%"). A cache grows in place meanwhile: keep a state of it by deepcopy, not by its
    tensors. In `generate` the prompt is what it was given; in direct calls of the model,
    what comes several tokens at a time or into an empty cache. `observe=True` judges every selection
    (`Attachment.fidelity`); `observe="shadow"` does so too, and leaves the output dense.
    `backend` is that of topkit.kernels: "auto" takes Triton's where it can; "triton" takes no other,
    is tried out on a few tokens at once, and never waits for the GPU to look at what comes in (NaN
    then goes on to the output).
    `capture`: with "triton", a CUDA graph holds the steps of `generate` where the indexer (`fixed`) and
    the model allow it, and hooks inside of the model are not called; False runs them kernel by kernel.
    Raises: InputError for a model, layer, cache or mask that it would not serve rightly.
    """
    recipe, budget = parse(indexer), parse_budget(k)
    if observe not in (True, False, "shadow"):
        raise InputError(f'observe must be True, False or "shadow"; got {observe!r}')
    if not isinstance(capture, bool):
        raise InputError(f"capture must be True or False; got {capture!r}")
    modules = _attachable(model, recipe, layers)
    resolve(backend, next(model.parameters()))
    how = (modules, observe == "shadow", sparse_prefill)
    if backend == "triton":
        reader = Reader(recipe, budget, seed, None, backend)
        _try_out(model, Attachment(model, reader, *how, capture=False))
    judged = Observer(recipe, budget) if observe else None
    return Attachment(model, Reader(recipe, budget, seed, judged, backend), *how, capture)


class Attachment:
    """A model that decodes through an indexer; as a context manager it detaches at the end."""

    def __init__(
        self,
        model: PreTrainedModel,
        reader: Reader,
        modules: dict[int, nn.Module],
        shadow: bool,
        sparse_prefill: bool,
        capture: bool,
    ) -> None:
        self.layers = sorted(modules)
        self._reader, self._shadow, self._sparse_prefill = reader, shadow, sparse_prefill
        self._padding = Padding()
        self._caches: dict[int, Any] = {}
        self._followed: WeakSet[Any] = WeakSet()
        # Slots of the prompt that `generate` was given, while it runs.
        self._prompt: int | None = None
        self._graphed: Graphed | None = None
        # Steps of `generate` that were run at fixed shapes: by a CUDA graph, on a GPU.
        self.captured = 0
        with ExitStack() as undo:
            for module in modules.values():
                _attachments[module] = self
                undo.callback(_attachments.pop, module, None)
                hook = module.register_forward_pre_hook(self._note_cache, with_kwargs=True)
                undo.callback(hook.remove)
            wanted = reader.indexer.needs & {"hidden", "latent", "rope"}
            given = inputs_of(modules.values() if wanted else [])
            self._given: Inputs = undo.enter_context(given)
            undo.enter_context(switched(model, NAME, _attention))
            undo.callback(self._leave_caches)
            if hasattr(model, "generate"):
                self._wrap_generate(model, undo)
                if capture and not sparse_prefill and Graphed.can_serve(reader):
                    self._wrap_forward(model, undo)
            self._undo = undo.pop_all()

    def detach(self) -> None:
        """Give the model its own attention back, and caches their own layers; twice is once."""
        self._undo.close()

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

    @property
    def at(self) -> Tensor | None:
        """The slot [1] that a step of fixed shapes is writing, on the device; None at any other step."""
        return None if self._graphed is None else self._graphed.at

    def attend(
        self,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        scaling: float | None = None,
        position_ids: Tensor | None = None,
        **given: Any,
    ) -> Tensor:
        """What stands in for the attention function of the model: its output [B, t, Hq, Dv]."""
        layer: int = module.layer_idx  # type: ignore[assignment]
        scale = query.shape[-1] ** -0.5 if scaling is None else float(scaling)
        inputs = taken(self._given, layer)
        if self._graphed is not None and self.at is not None:
            self._caches.pop(layer, None)
            return self._graphed.attend(layer, query, key, value, scale, inputs)
        count, length = query.shape[2], key.shape[2]
        held = length - count
        followed, prompt = self._follow(layer, held), self._of_prompt(held, count)
        start = self._padding.start(mask, position_ids, count, length)
        new = {"queries": query, "keys": key[:, :, held:], "values": value[:, :, held:]}
        if self._reader.backend != "triton":
            require_finite(f"layer {layer}", new, start, held)
        inputs |= {"values": new["values"]}
        call = Call(layer, query, key, value, scale, start, inputs)
        with torch.no_grad():
            self._reader.take(followed, call, prompt)
        outputs = []
        if prompt or self._shadow:
            dense = _dense(module, query, key, value, mask, scaling=scaling, **given)
            outputs = [dense if self._shadow else dense[:, :prompt]]
        if prompt < count:
            sparse = self._reader.read(followed, call, prompt, not self._shadow)
            if sparse is not None:
                outputs.append(sparse.transpose(1, 2))
        followed.valid, followed.start = length, start
        return outputs[0].contiguous() if len(outputs) == 1 else torch.cat(outputs, 1)

    def _follow(self, layer: int, held: int) -> Followed:
        cache = self._caches.pop(layer, None)
        if cache is None:  # without a cache every call brings all tokens
            return Followed(self)
        if layer >= len(getattr(cache, "layers", ())):
            raise InputError(f"attach follows a DynamicCache; got a {type(cache).__name__}")
        followed = follow(cache.layers[layer], self)
        self._followed.add(cache.layers[layer])
        if followed.index is not None and followed.valid != held:
            raise InputError(
                f"the index of layer {layer} has {followed.valid} slots and its cache {held}: the "
                "cache was changed in a way that attach does not follow"
            )
        return followed

    def _of_prompt(self, held: int, count: int) -> int:
        """How many of a call's tokens are the prompt's."""
        if self._sparse_prefill:
            return 0
        if self._prompt is not None:
            return min(max(self._prompt - held, 0), count)
        return count if count > 1 or held == 0 else 0

    def also(self, layer: Any) -> None:
        """Give this copy of a cache layer its own class back, too, when detaching."""
        self._followed.add(layer)

    def _note_cache(self, module: nn.Module, _: Any, given: dict[str, Any]) -> None:
        self._caches[module.layer_idx] = given.get("past_key_values")  # type: ignore[index]

    def _leave_caches(self) -> None:
        for layer in self._followed:
            leave(layer)

    def _wrap_generate(self, model: PreTrainedModel, undo: ExitStack) -> None:
        own: Any = model.generate
        before = vars(model).get("generate")

        @functools.wraps(own)
        def generate(inputs: Any = None, *args: Any, **given: Any) -> Any:
            outer, self._prompt = self._prompt, _prompt_length(inputs, given)
            if self._reader.judged is not None:
                self._reader.judged.call += 1
            try:
                return own(inputs, *args, **given)
            finally:
                self._prompt = outer
                if self._graphed is not None:
                    self._graphed.forget()

        def restore() -> None:
            del model.generate
            if before is not None:
                model.generate = before

        model.generate = generate  # type: ignore[assignment]
        undo.callback(restore)

    def _wrap_forward(self, model: PreTrainedModel, undo: ExitStack) -> None:
        own: Any = model.forward
        before = vars(model).get("forward")
        graphed = Graphed(self, self.layers, model, own, self._reader)

        @functools.wraps(own)
        def forward(*args: Any, **given: Any) -> Any:
            prompt = self._prompt
            output = None if prompt is None or args else graphed.step(given, prompt)
            if output is None:
                return own(*args, **given)
            self.captured += 1
            return output

        def restore() -> None:
            self._graphed = None
            del model.forward
            if before is not None:
                model.forward = before

        self._graphed = graphed
        model.forward = forward
        undo.callback(restore)


_attachments: WeakKeyDictionary[nn.Module, Attachment] = WeakKeyDictionary()


def _attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **given: Any
) -> tuple[Tensor, None]:
    attachment = _attachments.get(module)
    if attachment is None:
        return _dense(module, query, key, value, mask, **given), None
    return attachment.attend(module, query, key, value, mask, **given), None


def _dense(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    indices: Tensor | None = None,
    **given: Any,
) -> Tensor:
    mask = mask if indices is None else within(indices, mask, key.shape[2])
    return sdpa_attention_forward(module, query, key, value, mask, **given)[0]


def _prompt_length(inputs: Any, given: dict[str, Any]) -> int:
    """Slots that a call of generate starts from: its mask spans them where its tokens do not."""
    names = ("inputs", "input_ids", "inputs_embeds", "attention_mask")
    prompts = (inputs, *(given.get(name) for name in names))
    return max((x.shape[1] for x in prompts if isinstance(x, Tensor)), default=1)


def _attachable(
    model: PreTrainedModel, indexer: Indexer, layers: Iterable[int] | None
) -> dict[int, nn.Module]:
    """The attention modules to serve, by layer, found by a short pass."""
    if not isinstance(model, PreTrainedModel):
        raise InputError(f"attach takes a loaded transformers model; got {type(model).__name__}")
    name = type(model).__name__
    if model.config.is_encoder_decoder:
        raise InputError(f"{name} cannot be attached to: it has an encoder")
    seen = probe(model)
    local = DynamicCache(config=model.config).is_sliding  # windows and chunks
    whole = {n: one.module for n, one in seen.items() if one.window is None and not local[n]}
    try:
        chosen = sorted(whole if layers is None else set(layers))
    except TypeError:
        raise InputError(f"layers must be numbers as [0, 3]; got {layers!r}") from None
    if not chosen:
        raise InputError(f"{name} has no layer to attach to: none attends to all keys")
    # Also of other layers: what two attachments change of a model comes back in one order only.
    if any(module in _attachments for module in whole.values()):
        raise InputError(f"{name} is attached already; detach it first")
    for layer in chosen:
        if layer not in seen:
            raise InputError(f"{name} has no attention in layer {layer!r}; it has {sorted(seen)}")
        if layer not in whole:
            raise InputError(
                f"layer {layer} of {name} sees a window of keys and stays dense; leave it out"
            )
    reasons = unserved(model, [indexer], {layer: seen[layer] for layer in chosen})
    if reasons:
        raise InputError(reasons[indexer])
    return {layer: whole[layer] for layer in chosen}


@torch.no_grad()
def _try_out(model: PreTrainedModel, attachment: Attachment) -> None:
    """One decoding step behind a few tokens, so that what a kernel does not take is refused at once."""
    training = model.training
    try:
        with attachment:
            model.eval()
            ids = torch.ones(1, PROBED, dtype=torch.long, device=model.device)
            cache = model(ids, use_cache=True).past_key_values
            model(ids[:, :1], past_key_values=cache, use_cache=True)
    finally:
        model.train(training)
