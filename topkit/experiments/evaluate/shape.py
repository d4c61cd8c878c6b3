"""What the memory of an evaluation follows from: the shape of a model, and of what it is asked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from topkit.experiments.model.own_indexer import index_heads, listing_bytes, own_k
from topkit.experiments.model.record import LayerRecord


@dataclass(frozen=True)
class Shape:
    """What memory follows from. weights: bytes. layers: of attention; heads: query heads and KV heads of one.

    width: of a key, and of a value; passing: numbers a token that a layer holds at once; bytes of a number;
    index_heads, index_width, index_k: of the model's own indexer, its key and its lists; device: bytes of the
    GPU's memory, where graphs may hold some; plain: the softmax has no sinks and no softcap; own: `device` is what this
    process was given of it, and no other takes any of that.
    """

    weights: int
    layers: int
    heads: tuple[int, int]
    width: tuple[int, int]
    passing: int
    vocabulary: int
    bytes: int
    windowed: bool = False
    on_device: bool = False
    index_heads: int = 0
    index_width: int = 0
    index_k: int = 0
    device: int = 0
    plain: bool = True
    own: bool = False

    @classmethod
    def of(cls, model: PreTrainedModel, records: Mapping[int, LayerRecord]) -> Shape:
        """records: of the model's layers, from a short pass; the widest counts for all."""
        config = model.config.get_text_config()
        wide = max(records.values(), key=lambda one: one.keys[:, :, 0].numel())
        inner = getattr(config, "intermediate_size", None) or 4 * config.hidden_size
        listed = any(one.chosen is not None for one in records.values())
        return cls(
            sum(x.numel() * x.element_size() for x in model.parameters()),
            len(records),
            (wide.queries.shape[1], wide.keys.shape[1]),
            (wide.keys.shape[3], wide.values.shape[3]),
            4 * config.hidden_size + 3 * inner,
            config.vocab_size,
            wide.keys.element_size(),
            any(one.window is not None for one in records.values()),
            wide.keys.device.type != "cpu",
            index_heads(model) if listed else 0,
            getattr(config, "index_head_dim", 0) if listed else 0,
            (own_k(model) or 0) if listed else 0,
            _memory_of_gpu(wide.keys.device),
            all(one.softmax.plain for one in records.values()),
        )

    def listing(self, queries: int, keys: int) -> int:
        """Bytes of the scores of the model's own indexer."""
        return listing_bytes(self.index_heads, queries, keys)

    def prefix(self, length: int) -> int:
        """Bytes of the keys and values of so many tokens, and of their keys of the model's own indexer."""
        numbers = self.heads[1] * sum(self.width) + self.index_width
        return length * self.layers * numbers * self.bytes


@dataclass(frozen=True)
class Asked:
    """What a haystack is asked: its tokens, its questions, the most tokens of one, and of an answer.

    judged: numbers that are kept of a question's row, layer and query head, of answers' keys and in shadow.
    """

    length: int
    questions: int
    tail: int
    answer: int
    judged: int = 0


def _memory_of_gpu(device: torch.device) -> int:
    """Bytes of a GPU's memory; 0 for the host, which makes no graphs."""
    return torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else 0
