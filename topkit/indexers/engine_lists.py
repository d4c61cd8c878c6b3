"""What SGLang and vLLM answer of their index selection: the lists of every token and layer, in a response.

SGLang (`return_indexer_topk`, 0.5.12 on): `meta_info` with `indexer_topk`, base64 of int32 [tokens - 1, layers, k], and
`indexer_topk_num_layers`. vLLM (`--enable-return-indexer-topk`): `choices[].indexer_topk`, base64 of an .npy
[tokens, layers, k]. Slots are positions in the prompt. Sources: sgl-project/sglang 24392 and 26684, vllm-project/vllm
47280.
"""

from __future__ import annotations

import base64
import binascii
import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from topkit.documents import parse_json, quote, read_bytes
from topkit.errors import InputError

REMEDY = "give what docs/indices.md describes"
NAME, LAYERS = "indexer_topk", "indexer_topk_num_layers"


def read_response(path: Path) -> tuple[dict[int, Tensor], Tensor]:
    """The lists [B, 1, Tq, k] by layer, and their positions [B, Tq], of a response or a list of some.

    Layers count as the engine counts those that have an indexer, from 0 on; shorter samples end with -1.
    Raises: InputError naming what the response lacks.
    """
    raw = read_bytes(path, REMEDY)
    said = parse_json(raw, [dict] if raw.lstrip()[:1] == b"[" else dict, path, REMEDY)
    lists = [
        one for response in (said if isinstance(said, list) else [said]) for one in _of(response)
    ]
    if not lists:
        raise InputError(
            f"{path} has no {NAME}: ask for it (return_indexer_topk, or --enable-return-indexer-topk)"
        )
    if len({one.shape[1] for one in lists}) > 1:
        raise InputError(f"{path}: its samples have {[one.shape[1] for one in lists]} layers")
    return together(lists)


def read_array(path: Path) -> tuple[dict[int, Tensor], Tensor]:
    """The same of an .npy [tokens, layers, k], as a response holds it."""
    return together([_three(np.load(path, allow_pickle=False, mmap_mode="r"))])


def together(lists: list[Tensor]) -> tuple[dict[int, Tensor], Tensor]:
    """Lists [tokens, layers, k] of several samples, by layer, filled up with -1."""
    count, wide = (max(one.shape[axis] for one in lists) for axis in (0, 2))
    filled = [pad(x, (0, wide - x.shape[2], 0, 0, 0, count - len(x)), value=-1) for x in lists]
    every = torch.stack(filled).transpose(1, 2)
    slots = torch.arange(count)
    positions = torch.stack([slots.where(slots < len(one), -1) for one in lists])
    return {layer: every[:, layer, None] for layer in range(every.shape[1])}, positions


def _of(response: Mapping[str, Any]) -> Iterator[Tensor]:
    """The lists of each answer of a response."""
    choices = response.get("choices")
    for one in choices if isinstance(choices, list) else [response]:
        meta = one.get("meta_info") if isinstance(one, Mapping) else None
        if isinstance(meta, Mapping) and NAME in meta:
            yield _of_sglang(meta, response.get("usage"))
        elif isinstance(one, Mapping) and one.get(NAME) is not None:
            yield _of_vllm(one[NAME], response.get("usage"), len(choices or ()))


def _of_sglang(meta: Mapping[str, Any], usage: Any) -> Tensor:
    raw, beside = _bytes(meta[NAME]), usage if isinstance(usage, Mapping) else {}
    layers = _whole(LAYERS, meta.get(LAYERS))
    asked = _whole("prompt_tokens", meta.get("prompt_tokens", beside.get("prompt_tokens")))
    tokens = asked + _whole("completion_tokens", meta.get("completion_tokens")) - 1
    if min(tokens, layers) < 1 or not raw or len(raw) % (4 * tokens * layers):
        raise InputError(
            f"{NAME} holds {len(raw):,} bytes, which are not k of {tokens:,} tokens (prompt_tokens + "
            f"completion_tokens - 1) in {layers} layers; it is cut off, or of another request"
        )
    numbers = np.frombuffer(raw, np.dtype("<i4")).reshape(tokens, layers, -1)
    return torch.from_numpy(numbers.astype(np.int64))


def _whole(name: str, x: Any) -> int:
    if not isinstance(x, int) or isinstance(x, bool) or x < 0:
        raise InputError(
            f"meta_info wants {name}, a whole number, to tell tokens and layers apart; got {quote(x)}"
        )
    return x


def _of_vllm(text: Any, usage: Any, answers: int) -> Tensor:
    try:
        lists = _three(np.load(io.BytesIO(_bytes(text)), allow_pickle=False))
    except (ValueError, EOFError, OSError) as error:
        raise InputError(f"{NAME} is no .npy: {' '.join(str(error).split())[:120]}") from error
    if isinstance(usage, Mapping) and answers == 1:
        tokens = int(usage.get("prompt_tokens") or 0) + int(usage.get("completion_tokens") or 0)
        if tokens and len(lists) not in (tokens, tokens - 1):
            raise InputError(
                f"{NAME} is of {len(lists)} tokens, and the request of {tokens}: ask from the first on "
                "(indexer_topk_prompt_start=0), or write positions too, as docs/indices.md says"
            )
    return lists


def _three(array: np.ndarray) -> Tensor:
    if array.ndim != 3 or array.dtype.kind not in "iu" or 0 in array.shape:
        raise InputError(
            f"lists must be whole numbers [tokens, layers, k]; got {array.dtype} {list(array.shape)}"
        )
    return torch.from_numpy(np.asarray(array, np.int64).copy())


def _bytes(text: Any) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, TypeError, ValueError) as error:
        raise InputError(f"{NAME} must be base64; got {quote(text)}") from error
