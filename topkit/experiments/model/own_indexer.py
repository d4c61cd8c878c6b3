"""A model's own indexer: its modules, its k, and whether topkit can replace its lists."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from inspect import signature
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from topkit.experiments.model.copies import replaced

# Gives the slots [B, t, k] that the indexer of a layer lists, by way of its own forward and its arguments.
Choose = Callable[[Callable[..., Tensor], int, dict[str, Any]], Tensor]
# Kinds whose indexer hands attention a list of slots a token, for all heads of a layer (DSA).
DRIVEN = ("deepseek_v32", "glm_moe_dsa", "axk2", "dots3_note", "mistral_large4")


def indexers(model: nn.Module) -> list[nn.Module]:
    """The modules that choose keys, in the order of the layers."""
    return [module for module in model.modules() if type(module).__name__.endswith("Indexer")]


def own_k(model: PreTrainedModel) -> int | None:
    """The k of the model's own indexer; None where it has none."""
    return getattr(model.config.get_text_config(), "index_topk", None)


def listing_bytes(heads: int, queries: int, keys: int) -> int:
    """Bytes of the scores of an indexer of so many heads, twice, in float32."""
    return 8 * heads * queries * keys


def index_heads(model: PreTrainedModel) -> int:
    """The heads of the model's own indexer; 0 where it has none."""
    return (
        0 if own_k(model) is None else getattr(model.config.get_text_config(), "index_n_heads", 0)
    )


def own_identity(model: PreTrainedModel) -> dict[str, int]:
    """What a run depends on beside the weights, of a model with an indexer of its own."""
    k = own_k(model)
    return {} if k is None else {"index_topk": k}


def undriven(model: PreTrainedModel, listed: Collection[nn.Module]) -> str:
    """Why the model's own indexer cannot be driven, as a sentence; "" where it can, or there is none.

    listed: the attention modules that were handed a list of slots.
    """
    driven = {part for module in listed for part in module.modules()}
    others = [indexer for indexer in indexers(model) if indexer not in driven]
    if not others:
        return ""
    kind = model.config.get_text_config().model_type
    return (
        f"the indexer of {kind} ({type(others[0]).__name__}) chooses blocks, or pooled or compressed "
        f"keys, within the layer; expected one that hands attention a list of single keys; take a model "
        f"of {', '.join(DRIVEN[:-1])} or {DRIVEN[-1]}"
    )


@contextmanager
def choosing(model: nn.Module, choose: Choose) -> Iterator[None]:
    """In here the model's own indexers list what `choose` gives, in calls of this thread."""
    with ExitStack() as stack:
        for indexer in indexers(model):
            stack.enter_context(replaced(indexer, "forward", _through(indexer, choose)))
        yield


def _through(indexer: nn.Module, choose: Choose) -> Callable[..., Tensor]:
    form, layer = signature(indexer.forward), int(indexer.layer_idx)  # type: ignore[arg-type]
    here = threading.get_ident()

    def forward(own: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        if threading.get_ident() != here:
            return own(*args, **kwargs)
        return choose(own, layer, dict(form.bind(*args, **kwargs).arguments))

    return forward
