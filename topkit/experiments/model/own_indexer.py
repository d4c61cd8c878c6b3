"""A model's own indexer: which keys its attention is let to see, and whether it can be driven here."""

from __future__ import annotations

from collections.abc import Collection

from torch import nn
from transformers import PreTrainedModel

# Kinds whose indexer hands attention a list of slots a token, for all heads of a layer (DSA).
DRIVEN = ("deepseek_v32", "glm_moe_dsa", "axk2", "dots3_note", "mistral_large4")


def indexers(model: nn.Module) -> list[nn.Module]:
    """The modules that choose keys, in the order of the layers."""
    return [module for module in model.modules() if type(module).__name__.endswith("Indexer")]


def own_k(model: PreTrainedModel) -> int | None:
    """How many keys the model's own indexer lets through; None where it has none."""
    return getattr(model.config.get_text_config(), "index_topk", None)


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
