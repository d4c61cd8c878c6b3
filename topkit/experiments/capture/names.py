"""The names that people give tensors, as the arguments of `Capture.from_tensors`, and the layers in them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch

from topkit.documents import quote
from topkit.errors import InputError
from topkit.experiments.capture.tensors import OF_MODELS, SHAPES
from topkit.grammar import nearest

# Beside its own name, what each tensor is called. Names are compared without regard to case.
ALIASES = {
    "queries": ("q", "query", "query_states"),
    "keys": ("k", "key", "key_states"),
    "values": ("v", "value", "value_states"),
    "index_queries": ("index_q", "index_query", "indexer_q", "q_index", "q_index_fp8", "idx_q"),
    "index_keys": ("index_k", "index_key", "indexer_k", "k_index", "k_index_fp8", "idx_k"),
    "index_weights": ("index_w", "index_weight", "indexer_weights", "index_gates", "weights"),
    "index_cache": (
        "index_k_cache",
        "indexer_k_cache",
        "k_index_cache",
        "k_index_cache_fp8",
        "index_k_with_scale_buffer",
        "kv_cache_fp8",
        "kv_cache_fp4",
        "fused_kv_cache",
    ),
    "block_table": ("block_tables", "page_table"),
    "lengths": ("seq_lens", "seqlens", "context_lens", "cache_seqlens"),
    "cu_seqlens": ("cu_seqlens_k", "cu_seqlens_kv"),
    "cu_seqlens_q": ("qo_indptr",),
    "scaling": ("sm_scale", "softmax_scale"),
}
# What fp8 and fp4 tensors are multiplied by; a row of its own for each vector.
SCALED = ("queries", "keys", "values", "index_queries", "index_keys")
_SCALE = re.compile(r"(.+?)_(?:scales?|sf)")
# Said once, of all layers.
OF_ALL = ("scaling", "lengths", "positions", "block_table", "cu_seqlens", "cu_seqlens_q")
NAMES = tuple(sorted({*SHAPES, *ALIASES, "lengths"} - OF_MODELS))
_LAYER = re.compile(r"(?:.*?(?:layers?|blocks?)[._])?(\d{1,6})[._](?:self_attn[._]|attn[._])?(.+)")
_OF_NAME = re.compile(r"([A-Za-z_]+)[._](\d{1,6})")
_KNOWN = {alias: name for name in NAMES for alias in (name, *ALIASES.get(name, ()))}


def arguments(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Named tensors as arguments of `Capture.from_tensors`; `3.q`, `layers.3.q` or `q.3` is one of layer 3.

    Raises: InputError for a name that is none of theirs, and two names of one tensor.
    """
    made: dict[str, Any] = {}
    scales: dict[str, Any] = {}
    # Whatever the order, an alias is the second of two.
    for given in sorted(tensors, key=lambda name: (name not in NAMES, name)):
        tensor = tensors[given]
        layer, name = _split(given)
        place, canonical = _place(name.lower(), given, tensors)
        _put(scales if place == "scales" else made, canonical, layer, tensor, given)
    return made | ({"scales": scales} if scales else {})


def _split(given: str) -> tuple[int | None, str]:
    """The layer that a name says, before or behind the tensor's, and the tensor's."""
    if at := _LAYER.fullmatch(given):
        return int(at[1]), at[2]
    if at := _OF_NAME.fullmatch(given):
        return int(at[2]), at[1]
    return None, given


def _place(name: str, given: str, tensors: Mapping[str, Any]) -> tuple[str, str]:
    if name in _KNOWN:
        return "tensors", _KNOWN[name]
    scale = _SCALE.fullmatch(name)
    if scale is not None and _KNOWN.get(scale[1]) in SCALED:
        return "scales", _KNOWN[scale[1]]
    hint = nearest(name, list(_KNOWN))
    raise InputError(
        f"it must hold tensors named {', '.join(NAMES)} (or q, k, v, index_q, k_scale, layers.3.q and their "
        f"kin); it holds {quote(sorted(tensors))}, of which {quote(given)} is none; {hint}"
    )


def _put(made: dict[str, Any], name: str, layer: int | None, tensor: Any, given: str) -> None:
    if layer is None or name in OF_ALL:
        if name in made and layer is not None and name in OF_ALL:
            if not _alike(made[name], tensor):
                raise InputError(
                    f"{name} must be the same for all layers; {quote(given)} is another; give one file each"
                )
            return
        if name in made:
            raise _twice(name, given)
        made[name] = tensor
        return
    by_layer = made.setdefault(name, {})
    if not isinstance(by_layer, dict) or layer in by_layer:
        raise InputError(f"it holds {name} twice, the second time as {quote(given)}")
    by_layer[layer] = tensor


def _alike(one: Any, other: Any) -> bool:
    """Whether what is said of two layers is the same."""
    try:
        return torch.equal(*(torch.as_tensor(x).cpu().double() for x in (one, other)))
    except (TypeError, ValueError, RuntimeError):
        return False


def _twice(name: str, given: str) -> InputError:
    return InputError(
        f"it must hold each tensor once; it holds {name} twice, as {quote(given)} too"
    )
