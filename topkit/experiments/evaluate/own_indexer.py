"""A model's own indexer over a shared prefix, and behind it for the rows that read its lists."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from topkit.experiments.evaluate.streams import Prefix, Stream, rows_of

Forward = Callable[..., Tensor]


@dataclass
class IndexKeys:
    """What an indexer takes for its cache: index keys [B, T, d], or None, to which it adds its own."""

    keys: Tensor | None = None

    def update_indexer(self, new: Tensor, layer: int) -> Tensor:
        """The keys of all tokens, the new ones last."""
        self.keys = new if self.keys is None else torch.cat([self.keys, new], 1)
        return self.keys


@dataclass
class PrefixIndex:
    """Lets the model's own indexers choose as ever, and keeps each layer's index keys [1, P, d]."""

    keys: dict[int, Tensor] = field(default_factory=dict)

    def choose(self, own: Forward, layer: int, arguments: dict[str, Any]) -> Tensor:
        kept = IndexKeys()
        lists = own(**{**arguments, "past_key_values": kept})
        assert kept.keys is not None
        self.keys[layer] = kept.keys
        return lists


@dataclass(frozen=True)
class RowsIndex:
    """Lets the model's own indexers choose for those rows alone that read their lists.

    Rows are those of the streams, one after the other; `reading`: the first stream attends as the model does.
    """

    prefix: Mapping[int, Prefix]
    streams: Sequence[Stream]
    reading: bool = False

    def choose(self, own: Forward, layer: int, arguments: dict[str, Any]) -> Tensor:
        """Lists [R, t, k]; those of other rows are of no meaning."""
        hidden, asking = arguments["hidden_states"], self._asking()
        rows, count = hidden.shape[:2]
        if not asking:
            return torch.zeros(rows, count, 1, dtype=torch.int32, device=hidden.device)
        at = torch.cat([torch.arange(s.start, s.stop, device=hidden.device) for _, s in asking])
        past = self._past(layer, [stream for stream, _ in asking])
        first = self.prefix[layer].length
        length = past.shape[1] + count
        slots = torch.arange(length, device=hidden.device)
        kept = IndexKeys(past)
        some = {name: rows_of(x, at) for name, x in arguments.items()}
        some["attention_mask"] = (slots <= slots[-count:, None])[None]
        lists = own(**{**some, "past_key_values": kept})
        assert kept.keys is not None
        tails = iter(kept.keys[:, first:].split([stream.rows for stream, _ in asking]))
        for stream, _ in asking:
            stream.index_keys[layer] = next(tails)
        out = lists.new_zeros(rows, count, lists.shape[-1])
        out[at] = lists
        return out

    def _asking(self) -> list[tuple[Stream, slice]]:
        """The streams that read lists, and their rows."""
        asking, first = list[tuple[Stream, slice]](), 0
        for number, stream in enumerate(self.streams):
            rows = slice(first, first + stream.rows)
            if stream.reads_lists or (self.reading and number == 0):
                asking.append((stream, rows))
            first = rows.stop
        return asking

    def _past(self, layer: int, streams: Sequence[Stream]) -> Tensor:
        """The index keys of all tokens before the call, of each row [b, T, d]."""
        prefix = self.prefix[layer].index_keys
        assert prefix is not None
        tails = [
            stream.index_keys.get(layer, prefix.new_empty(stream.rows, 0, prefix.shape[2]))
            for stream in streams
        ]
        tail = torch.cat(tails)
        return torch.cat([prefix.expand(len(tail), -1, -1), tail], 1)
