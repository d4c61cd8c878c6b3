"""Paged caches of attention's keys and values, as flashinfer indexes them, end to end."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from topkit.documents import quote
from topkit.errors import InputError
from topkit.experiments.capture.lengths import whole_numbers

PAGES = frozenset({"kv_indptr", "kv_indices"})
# The queries and caches of attention, and of MLA, by their numbers of dimensions.
ATTENTION = {"q": 3, "k_cache": 4, "v_cache": 4}
MLA = {"q_nope": 3, "q_pe": 3, "ckv_cache": 3, "kpe_cache": 3}
SCALES = ("k_scale", "v_scale")
BESIDE = (*PAGES, "kv_last_page_len", "qo_indptr", "sm_scale", *SCALES)


def keys_and_values(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Queries, keys and values [tokens, heads, D] of sequences end to end, and where each begins.

    Shapes: k_cache and v_cache [pages, tokens, Hk, D] with q [n, Hq, D], or MLA's ckv_cache and kpe_cache
    [pages, tokens, R] with q_nope and q_pe; kv_indptr [B + 1] into kv_indices, the pages of each sequence;
    kv_last_page_len [B], the tokens of each last page; qo_indptr [B + 1], or one query each; k_scale and v_scale,
    one number each.
    Raises: InputError for names and shapes that are none of these, pages that are not there or repeat, and a last
    page of unknown length.
    """
    named = _tensors(inputs)
    caches = {name: x for name, x in named.items() if name.endswith("cache")}
    pages, size = next(iter(caches.values())).shape[:2]
    edges = whole_numbers("kv_indptr", inputs["kv_indptr"]).reshape(-1).tolist()
    listed = whole_numbers("kv_indices", inputs["kv_indices"]).reshape(-1)
    if len(edges) < 2 or edges[0] != 0 or edges != sorted(edges) or edges[-1] > len(listed):
        raise InputError(
            f"kv_indptr must begin with 0, ascend and end within the {len(listed)} kv_indices; got {quote(edges)}"
        )
    last = _last_pages(inputs, len(edges) - 1, size)
    slots, lengths = list[Tensor](), list[int]()
    for row, (begin, end) in enumerate(pairwise(edges)):
        own = listed[begin:end]
        length = (end - begin - 1) * size + last[row]
        if end == begin or not 0 < last[row] <= size:
            raise InputError(
                f"sequence {row} has {end - begin} pages, the last of {last[row]} tokens, where a page has {size}"
            )
        if len(own.unique()) < len(own) or int(own.min()) < 0 or int(own.max()) >= pages:
            raise InputError(
                f"kv_indices of sequence {row} name a page twice, or one that the {pages} of the cache lack"
            )
        slots.append((own[:, None] * size + torch.arange(size)).flatten()[:length])
        lengths.append(length)
    taken = torch.cat(slots)
    named |= {name: x.flatten(0, 1)[taken] for name, x in caches.items()}
    asked, scale = inputs.get("qo_indptr"), inputs.get("sm_scale")
    return {
        **_attention(named),
        "lengths": lengths,
        "cu_seqlens_q": range(len(edges)) if asked is None else asked,
        **({} if scale is None else {"scaling": scale}),
        **{name: inputs[name] for name in SCALES if inputs.get(name) is not None},
    }


def _tensors(inputs: Mapping[str, Any]) -> dict[str, Tensor]:
    """Queries and caches by name. Raises: InputError for what is none, or of other pages than the rest."""
    wanted = MLA if "ckv_cache" in inputs else ATTENTION
    lacking = sorted(set(wanted) - set(inputs))
    unknown = sorted(set(inputs) - {*wanted, *BESIDE})
    if lacking or unknown:
        fault = f"it lacks {', '.join(lacking)}" if lacking else f"it holds {quote(unknown[0])} too"
        raise InputError(
            f"paged attention is {', '.join(wanted)}, with {', '.join(sorted(BESIDE))}; {fault}"
        )
    named = {name: torch.as_tensor(inputs[name]) for name in wanted if _is_array(inputs[name])}
    for name, count in wanted.items():
        if name not in named or named[name].ndim != count:
            form = "[queries, heads, D]" if name.startswith("q") else "[pages, tokens, heads, D]"
            form = form.replace("heads, ", "") if (count, form[1]) == (3, "p") else form
            got = list(named[name].shape) if name in named else type(inputs[name]).__name__
            raise InputError(f"{name} must be a tensor {form}; got {got}")
    if len({named[name].shape[:2] for name in wanted if name.endswith("cache")}) > 1:
        shapes = {name: list(x.shape) for name, x in named.items() if name.endswith("cache")}
        raise InputError(f"the caches must have the same pages of as many tokens; got {shapes}")
    return named


def _is_array(x: Any) -> bool:
    return isinstance(x, Tensor) or hasattr(x, "__array__")


def _attention(named: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Queries [n, H, D], keys and values [tokens, heads, D]: of MLA what it stores is both."""
    if "q" in named:
        return {"queries": named["q"], "keys": named["k_cache"], "values": named["v_cache"]}
    if named["q_nope"].shape[:2] != named["q_pe"].shape[:2]:
        raise InputError(
            f"q_nope {list(named['q_nope'].shape)} and q_pe {list(named['q_pe'].shape)} must be of the same "
            "queries and heads"
        )
    values = named["ckv_cache"][:, None]
    return {
        "queries": torch.cat([named["q_nope"], named["q_pe"]], -1),
        "keys": torch.cat([values, named["kpe_cache"][:, None]], -1),
        "values": values,
    }


def _last_pages(inputs: Mapping[str, Any], rows: int, size: int) -> list[int]:
    said = inputs.get("kv_last_page_len")
    if said is not None:
        last = whole_numbers("kv_last_page_len", said).reshape(-1).tolist()
    elif size == 1:
        last = [1] * rows
    else:
        raise InputError(
            f"pages of {size} tokens want kv_last_page_len, or the tokens of each last page are not known"
        )
    if len(last) != rows:
        raise InputError(
            f"kv_last_page_len must be {rows} numbers, one a sequence; got {len(last)}"
        )
    return last
