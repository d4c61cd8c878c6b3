"""What an evaluation holds at its peak, from shapes alone; and whether that fits."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import groupby

import torch
from transformers import PreTrainedModel

from topkit.errors import InputError
from topkit.experiments.decode.driver import PIECE
from topkit.experiments.evaluate.built import COPIED
from topkit.experiments.model.own_indexer import index_heads, listing_bytes
from topkit.experiments.model.record import LayerRecord
from topkit.experiments.runs.cells import Cell, chunks
from topkit.indexers.base import Cache, Indexer, Step
from topkit.indexers.combinator import Combinator
from topkit.indexers.paged import Paged
from topkit.indexers.scored import Scored
from topkit.indexers.stateless import Stateless

# Copies of one layer's scores, or of rows of them, that attention and the judge make on their way.
COPIES = 8
# Keys of which a recipe's codes are made, to see how many bytes it holds for one.
TRIED = 64


@dataclass(frozen=True)
class Shape:
    """What memory follows from. weights: bytes. layers: of attention; heads: query heads and KV heads of one.

    width: of a key, and of a value; passing: numbers a token that a layer holds at once; bytes of a number;
    index_heads: of the model's own indexer.
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
        )

    def listing(self, queries: int, keys: int) -> int:
        """Bytes of the scores of the model's own indexer."""
        return listing_bytes(self.index_heads, queries, keys)

    def prefix(self, length: int) -> int:
        """Bytes of the keys and values of so many tokens."""
        return length * self.layers * self.heads[1] * sum(self.width) * self.bytes


@dataclass(frozen=True)
class Asked:
    """What a haystack is asked: its tokens, its questions, the most tokens of one, and of an answer."""

    length: int
    questions: int
    tail: int
    answer: int


def memory_of(shape: Shape, asked: Asked, cells: Sequence[Cell], rows: int) -> int:
    """Bytes at the peak, with so many rows in a pass: weights + prefix + the greater of prefill and questions.

    Prefill: what one layer passes on, where a window slides or the model's own indexer chooses, 8 T^2 for the
    mask and its copy, and the scores of that indexer, of all tokens at once as in the model itself. Questions,
    of as many cells as a pass has rows: the codes that recipes choose from, once, and twice a row with an
    eighth of room, but for codes of more than COPIED keys; scores, COPIES times; keys and values of one
    layer, and all logits, twice, in float32.
    """
    t = asked.length
    masked = shape.windowed or shape.index_heads > 0
    prefill = t * shape.passing * shape.bytes + 8 * t**2 * masked + shape.listing(t, t)
    asking = max(_asking(shape, asked, some) for some in _turns(asked, cells, rows))
    return shape.weights + shape.prefix(t) + max(prefill, asking)


def require_room(room: int, what: str, needs: Callable[[int], int], rows: int) -> None:
    """Refuse what `needs` more bytes at so many rows than there are; `what` has them.

    Raises: InputError that says which number of rows fits.
    """
    if needs(rows) <= room:
        return
    fits = next((n for n in range(rows - 1, 0, -1) if needs(n) <= room), None)
    remedy = f"batch_size={fits} fits" if fits else "no batch_size fits; ask for a shorter length"
    raise InputError(
        f"the run takes about {needs(rows) / 1e9:.0f} GB, of the {room / 1e9:.0f} GB that {what} has; "
        f"{remedy}"
    )


def _turns(asked: Asked, cells: Sequence[Cell], rows: int) -> list[tuple[list[Cell], int]]:
    """The cells of each job, full attention among them, and how many questions go together."""
    turns = []
    for some in chunks(cells, rows):
        every = [Cell(), *(cell for cell in some if cell.indexer is not None)]
        turns.append((every, min(asked.questions, max(1, rows // len(every)))))
    return turns


def _asking(shape: Shape, asked: Asked, turn: tuple[Sequence[Cell], int]) -> int:
    cells, together = turn
    count, (heads, groups) = len(cells) * together, shape.heads
    a_query = count * heads * asked.length
    scores = 4 * COPIES * max(a_query, min(PIECE, a_query * asked.tail))
    layer = 4 * asked.length * groups * sum(shape.width)
    logits = 8 * count * asked.answer * shape.vocabulary
    tails = count * 2 * shape.prefix(asked.tail)
    listed = together * sum(c.indexer is not None and "native" in c.indexer.needs for c in cells)
    scores += shape.listing(listed * asked.tail, asked.length)
    return _codes(shape, asked.length, cells, together) + scores + layer + logits + tails


def _codes(shape: Shape, length: int, cells: Sequence[Cell], together: int) -> int:
    """Bytes of the codes of all recipes."""
    keys, total = length * shape.heads[1] * shape.width[0], 0.0
    leaves = set[Indexer]()
    for indexer, some in groupby(cells, lambda cell: cell.indexer):
        if indexer is None:
            continue
        leaf, rows = _leaf(indexer), len(list(some)) * together
        whole = length * shape.layers * bytes_a_key(leaf, shape)
        total += whole if leaf not in leaves else 0
        leaves.add(leaf)
        if not (isinstance(leaf, Scored) and keys * rows > COPIED):
            total += 2 * rows * whole * 9 / 8
    return int(total)


def _leaf(indexer: Indexer) -> Indexer:
    """The recipe whose codes it chooses from."""
    while isinstance(indexer, Combinator):
        indexer = indexer.base
    return indexer


@cache
def bytes_a_key(recipe: Indexer, shape: Shape) -> float:
    """What a recipe holds for one key of all heads of a layer: as it does for a few.

    Of those that read more than keys, a byte a dimension; graphs in float32 stand in the host's memory.
    """
    groups, width = shape.heads[1], shape.width[0]
    if isinstance(recipe, Stateless):
        return 0
    if recipe.requires == "faiss":
        return 0 if shape.on_device else 4 * groups * width
    if not isinstance(recipe, Scored | Paged) or recipe.needs - {"cache"}:
        return groups * width
    dtype = {2: torch.bfloat16, 4: torch.float32}.get(shape.bytes, torch.float32)
    keys = torch.zeros(1, groups, TRIED, width, dtype=dtype)
    step = Step(kv_heads=groups, inputs={"cache": Cache(keys, keys)})
    return recipe.build(keys, step.given_to(recipe)).nbytes / TRIED
