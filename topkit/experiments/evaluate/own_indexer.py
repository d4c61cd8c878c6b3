"""A model's own indexer over a shared prefix, and behind it for the rows that read its lists.

A list ends at any of several equal scores, as torch.topk has it for a row of so many. Each token's row is therefore
as long as it is in the model's own `generate`: as the whole prompt, and behind it as what the token sees.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from topkit.experiments.evaluate.streams import Prefix, Stream, rows_of

Forward = Callable[..., Tensor]


@dataclass
class IndexKeys:
    """What an indexer takes for its cache: index keys [B, T, d], or None, to which it adds its own.

    room: slots behind them that nothing stands in yet.
    """

    keys: Tensor | None = None
    room: int = 0

    def update_indexer(self, new: Tensor, layer: int) -> Tensor:
        """The keys of all slots, the new ones behind those before."""
        self.keys = new if self.keys is None else torch.cat([self.keys, new], 1)
        return pad(self.keys, (0, 0, 0, self.room))


@dataclass
class PrefixIndex:
    """Lets the model's own indexers choose as ever, and keeps each layer's index keys [1, P, d].

    room: how many tokens of a prompt come behind.
    """

    room: int = 0
    keys: dict[int, Tensor] = field(default_factory=dict)

    def choose(self, own: Forward, layer: int, arguments: dict[str, Any]) -> Tensor:
        kept, mask = IndexKeys(room=self.room), arguments["attention_mask"]
        seen = {"attention_mask": pad(mask, (0, self.room)), "past_key_values": kept}
        lists = own(**{**arguments, **seen})
        assert kept.keys is not None
        self.keys[layer] = kept.keys
        # A slot in the room fills a list that has all that its token sees: so does the last one.
        return lists.clamp_max(mask.shape[-1] - 1)


@dataclass(frozen=True)
class RowsIndex:
    """Lets the model's own indexers choose for those rows alone that read their lists.

    Rows are those of the streams, one after the other; `reading`: the first stream attends as the model does.
    prompt: slots of the prefix and a question.
    """

    prefix: Mapping[int, Prefix]
    streams: Sequence[Stream]
    prompt: int
    reading: bool = False

    def choose(self, own: Forward, layer: int, arguments: dict[str, Any]) -> Tensor:
        """Lists [R, t, k], -1 for none; those of other rows are of no meaning."""
        hidden, asking = arguments["hidden_states"], self._asking()
        rows, count = hidden.shape[:2]
        if not asking:
            return torch.zeros(rows, count, 1, dtype=torch.int32, device=hidden.device)
        streams = [stream for stream, _ in asking]
        at = torch.cat([torch.arange(s.start, s.stop, device=hidden.device) for _, s in asking])
        some = {name: rows_of(x, at) for name, x in arguments.items()}
        past = self._past(layer, streams)
        kept, pieces = IndexKeys(past), self._pieces(past.shape[1], count)
        lists = _joined([self._listed(own, kept, some, piece) for piece in pieces])
        assert kept.keys is not None
        tails = kept.keys[:, self.prefix[layer].length :].split([s.rows for s in streams])
        for stream, tail in zip(streams, tails, strict=True):
            stream.index_keys[layer] = tail
        every = lists.new_full((rows, count, lists.shape[-1]), -1)
        every[at] = lists
        return every

    def _listed(
        self, own: Forward, kept: IndexKeys, arguments: dict[str, Any], piece: slice
    ) -> Tensor:
        """The lists [r, n, k] of some of the newest tokens, whose keys are added to those kept."""
        assert kept.keys is not None
        before, count = kept.keys.shape[1], piece.stop - piece.start
        length = before + count
        kept.room = max(0, self.prompt - length)
        slots = torch.arange(length + kept.room, device=kept.keys.device)
        mask = (slots <= slots[before:length, None])[None]
        own_arguments = {name: _tokens_of(x, piece) for name, x in arguments.items()}
        lists = own(**{**own_arguments, "attention_mask": mask, "past_key_values": kept})
        return lists.where(lists < length, -1)

    def _pieces(self, before: int, count: int) -> Iterator[slice]:
        """The newest tokens as `generate` has them come: those of the prompt at once, later ones one by one."""
        first = min(count, max(0, self.prompt - before))
        if first:
            yield slice(0, first)
        yield from (slice(n, n + 1) for n in range(first, count))

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
        none = prefix[:, :0]
        tails = [s.index_keys.get(layer, none.expand(s.rows, -1, -1)) for s in streams]
        tail = torch.cat(tails)
        return torch.cat([prefix.expand(len(tail), -1, -1), tail], 1)


def _tokens_of(x: Any, place: slice) -> Any:
    """Some tokens of an argument [B, t, ...], or of a pair of such."""
    if isinstance(x, tuple):
        return tuple(_tokens_of(part, place) for part in x)
    return x[:, place] if isinstance(x, Tensor) else x


def _joined(parts: Sequence[Tensor]) -> Tensor:
    """Lists of some tokens each [B, n, k] as one of all; narrow ones are filled with -1."""
    width = max(part.shape[-1] for part in parts)
    return torch.cat([pad(x, (0, width - x.shape[-1]), value=-1) for x in parts], 1)
