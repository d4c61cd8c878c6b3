"""An indexer plugged into a model's decoding: attention reads the keys that it selects, and no others."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterable
from typing import Any

from torch import nn

from topkit.errors import InputError
from topkit.experiments.decode.attachable import attachable, decode_once
from topkit.experiments.decode.attachment import Attachment
from topkit.experiments.decode.dense_reader import DENSE, DenseReader
from topkit.experiments.decode.observer import Observer
from topkit.experiments.decode.prompt import parse_slot
from topkit.experiments.decode.reader import Reader
from topkit.experiments.decode.wrappers import unwrapped
from topkit.indexers.base import Indexer
from topkit.indexers.budget import Budget, parse_budget
from topkit.indexers.exact import exact
from topkit.indexers.spec import parse
from topkit.kernels import checks
from topkit.kernels.backend import resolve

__all__ = ["Attachment", "attach"]

# One attaches at a time: whether a model is attached is asked before it is.
_lock = threading.RLock()


def attach(
    model: nn.Module,
    indexer: str | Indexer,
    k: int | str | Budget | None,
    *,
    layers: Iterable[int] | None = None,
    observe: bool | str = False,
    sparse_prefill: bool = False,
    sparse_from_slot: Any = None,
    seed: int = 0,
    backend: str = "auto",
    cuda_graph: bool | None = None,
    capture: bool | None = None,
) -> Attachment:
    """Let a transformers model decode through an indexer, until `detach` or the end of a `with`.

    The prompt attends densely (unless `sparse_prefill`); each later token reads at most k keys a
    head, in every layer of full attention or in `layers`. k in keys, or per cent of the slots at
    that token ("1%"). A cache grows in place meanwhile: keep a state of it by deepcopy, not by its
    tensors. In `generate` the prompt is its input; in direct calls of the model,
    what comes several tokens at a time or into an empty cache. `sparse_from_slot` ends it at a slot,
    whatever the call (one for all rows, or a list of one a row; padding counts): tokens before it
    attend densely, and those from it on read k keys, as in scoring by whole forward passes;
    `Attachment.sparse_from` does so for some calls. `observe=True` judges every selection
    (`Attachment.fidelity`); `observe="shadow"` does so too, and leaves the output dense.
    `backend` is that of topkit.kernels: "auto" takes Triton's where it can; "triton" takes no other,
    is tried out on a few tokens at once, and never waits for the GPU to look at what comes in (NaN
    then goes on to the output).
    "dense" in an indexer's place, with k=None, reads every key by the same cache, steps and graphs: what
    decoding through an indexer is compared with.
    `cuda_graph` (by default True): with "triton", a CUDA graph holds the steps of `generate` where the
    indexer (`fixed`) and the model allow it, and hooks inside of the model are not called; False runs
    them kernel by kernel. `capture` is its old name.
    Threads may run the model side by side; copies and pickles of it are plain models.
    Raises: InputError for a model, layer, cache or mask that it would not serve rightly.
    """
    if indexer == DENSE:
        _check_dense(k, observe)
        recipe, budget = exact(), Budget(1)
    else:
        recipe, budget = parse(indexer), parse_budget(k)
    if observe not in (True, False, "shadow"):
        raise InputError(f'observe must be True, False or "shadow"; got {observe!r}')
    if sparse_prefill not in (True, False):
        raise InputError(f"sparse_prefill must be True or False; got {sparse_prefill!r}")
    seed, slot = checks.whole("seed", seed), parse_slot(sparse_from_slot)
    if sparse_prefill and slot is not None:
        raise InputError("sparse_prefill is sparse_from_slot=0; give one of the two")
    graphs = _cuda_graph(cuda_graph, capture) and not sparse_prefill
    served = unwrapped(model)
    with _lock:
        modules, line = attachable(served, recipe, layers)
        resolve(backend, next(served.parameters()))
        how = (modules, observe == "shadow", 0 if sparse_prefill else slot)
        if backend == "triton":
            reader = _reader(indexer, recipe, budget, seed, None, backend)
            with Attachment(served, reader, *how[:2], None, cuda_graph=False):
                decode_once(served)
        judged = Observer(recipe, budget) if observe else None
        reader = _reader(indexer, recipe, budget, seed, judged, backend)
        attachment = Attachment(served, reader, *how, graphs)
        attachment.outline = line
        return attachment


def _reader(indexer: str | Indexer, *how: Any) -> Reader:
    return DenseReader(*how) if indexer == DENSE else Reader(*how)


def _check_dense(k: Any, observe: bool | str) -> None:
    """Refuse what all keys have no use for."""
    if k is not None:
        raise InputError(f"dense reads every key and takes no k; give k=None; got {k!r}")
    if observe:
        raise InputError("dense chooses nothing that could be observed; leave observe out")


def _cuda_graph(cuda_graph: bool | None, capture: bool | None) -> bool:
    if capture is not None:
        if cuda_graph is not None:
            raise InputError("capture is the old name of cuda_graph; give cuda_graph alone")
        warnings.warn("attach(capture=) is now cuda_graph=", FutureWarning, stacklevel=3)
        cuda_graph = capture
    if cuda_graph is not None and not isinstance(cuda_graph, bool):
        raise InputError(f"cuda_graph must be True or False; got {cuda_graph!r}")
    return cuda_graph is not False
