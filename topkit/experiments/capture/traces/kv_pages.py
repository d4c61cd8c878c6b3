"""Paged caches of attention's keys and values, as flashinfer indexes them, end to end."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from topkit.errors import InputError
from topkit.experiments.capture.lengths import whole_numbers


def keys_and_values(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Queries, keys and values [tokens, heads, D] of sequences end to end, and where each begins.

    Shapes: k_cache and v_cache [pages, tokens, Hk, D] with q [n, Hq, D], or MLA's ckv_cache and kpe_cache
    [pages, tokens, R] with q_nope and q_pe; kv_indptr [B + 1] into kv_indices, the pages of each sequence;
    kv_last_page_len [B], the tokens of each last page; qo_indptr [B + 1], or one query each.
    Raises: InputError for pages that are not there or repeat, and a last page of unknown length.
    """
    caches = _caches(inputs)
    cache = caches["keys"]
    pages, size = cache.shape[:2]
    edges = whole_numbers("kv_indptr", inputs["kv_indptr"]).tolist()
    listed = whole_numbers("kv_indices", inputs["kv_indices"])
    last = _last_pages(inputs, len(edges) - 1, size)
    if edges[:1] != [0] or edges != sorted(edges) or edges[-1] > len(listed):
        raise InputError(
            f"kv_indptr must begin with 0, ascend and end within the {len(listed)} kv_indices"
        )
    slots, lengths = list[Tensor](), list[int]()
    for row, (begin, end) in enumerate(pairwise(edges)):
        own = listed[begin:end]
        length = (end - begin - 1) * size + last[row]
        if end == begin or not 0 < last[row] <= size:
            raise InputError(
                f"sequence {row} has {end - begin} pages, the last of {last[row]} tokens"
            )
        if len(own.unique()) < len(own) or int(own.min()) < 0 or int(own.max()) >= pages:
            raise InputError(
                f"kv_indices of sequence {row} name a page twice, or one that the {pages} of the cache lack"
            )
        slots.append((own[:, None] * size + torch.arange(size)).flatten()[:length])
        lengths.append(length)
    taken = torch.cat(slots)
    made: dict[str, Any] = {
        name: x.flatten(0, 1)[taken] for name, x in caches.items() if name != "queries"
    }
    asked, scale = inputs.get("qo_indptr"), inputs.get("sm_scale")
    return {
        **made,
        "queries": caches["queries"],
        "lengths": lengths,
        "cu_seqlens_q": range(len(edges)) if asked is None else asked,
        **({} if scale is None else {"scaling": scale}),
    }


def _caches(inputs: Mapping[str, Any]) -> dict[str, Tensor]:
    """Queries, and the caches of keys and values [pages, tokens, heads, D]."""
    if "ckv_cache" in inputs:
        values = inputs["ckv_cache"][:, :, None]
        keys = torch.cat([values, inputs["kpe_cache"][:, :, None]], -1)
        return {
            "queries": torch.cat([inputs["q_nope"], inputs["q_pe"]], -1),
            "keys": keys,
            "values": values,
        }
    lacking = sorted({"q", "k_cache", "v_cache"} - set(inputs))
    if lacking:
        raise InputError(
            f"paged attention wants q, k_cache and v_cache; it lacks {', '.join(lacking)}"
        )
    return {"queries": inputs["q"], "keys": inputs["k_cache"], "values": inputs["v_cache"]}


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
