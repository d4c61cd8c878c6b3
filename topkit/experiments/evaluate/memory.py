"""What an evaluation holds at its peak, from shapes alone; and whether that fits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from itertools import groupby

import torch

from topkit.errors import InputError
from topkit.experiments.decode.driver import PIECE
from topkit.experiments.evaluate.built import COPIED, wraps
from topkit.experiments.evaluate.gpu_share import GRAPHS
from topkit.experiments.evaluate.shape import Asked, Shape
from topkit.experiments.evaluate.stepped import ROUND, STEPS, is_fixed
from topkit.experiments.model.attention_call import LOGITS
from topkit.experiments.runs.cells import Cell, chunks
from topkit.indexers.base import Cache, Indexer, Step
from topkit.indexers.branched import held_once
from topkit.indexers.clustered import Clustered
from topkit.indexers.combinator import leaf as innermost
from topkit.indexers.faiss_probed import replayed
from topkit.indexers.h2o import h2o
from topkit.indexers.paged import Paged
from topkit.indexers.retrieval_attention import retrieval_attention
from topkit.indexers.scored import Scored
from topkit.indexers.stated_cost import Shape as CostShape
from topkit.indexers.stated_cost import stated
from topkit.indexers.stateless import Stateless

# Copies of one layer's scores, or of rows of them, that attention and the judge make on their way.
COPIES = 8
# Keys of which the codes of a recipe that states no costs are made, to see how many bytes it holds for one.
TRIED = 64


def memory_of(shape: Shape, asked: Asked, cells: Sequence[Cell], rows: int) -> int:
    """Bytes at the peak, with so many rows in a pass: weights + prefix + the greater of prefill and questions.

    Prefill: what one layer passes on, where a window slides or the model's own indexer chooses, 8 T^2 for the
    mask and its copy, scores of some queries, where these are written out, and the scores of that indexer, of all tokens at once as in the model itself, and twice
    its lists. Questions,
    of as many cells as a pass has rows: the codes that recipes choose from, once, and where rows do not share them
    twice a row with an eighth of room; scores, COPIES times; keys and values of one layer, and all logits, twice,
    in float32; what is judged of answers' keys and in shadow. What graphs hold on a GPU, from haystack to haystack,
    comes on top.
    """
    t = asked.length
    masked = shape.windowed or shape.index_heads > 0
    prefill = t * shape.passing * shape.bytes + 8 * t**2 * masked + shape.listing(t, t)
    prefill += 16 * t * min(shape.index_k, t)
    if not shape.plain:  # sinks and softcaps have no kernel: scores are written out
        prefill += COPIES * min(LOGITS, 4 * shape.heads[0] * t**2)
    turns = _turns(asked, cells, rows)
    asking = max(_asking(shape, asked, some) for some in turns)
    held = shape.weights + shape.prefix(t)
    return held + _graphed(shape, asked, turns, shape.device - held) + max(prefill, asking)


def graphed(shape: Shape, asked: Asked, cells: Sequence[Cell], rows: int) -> int:
    """Bytes that the graphs of one turn would hold, of all its rows; 0 where none are made."""
    if not shape.device or shape.index_heads:
        return 0
    turns = dict.fromkeys((tuple(some), n) for some, n in _turns(asked, cells, rows))
    return max(sum(_both(shape, asked, *turn)) for turn in turns)


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
    # Of rows that read the model's own lists: their keys of a layer, joined and joined again; all rows' lists.
    own = 3 * listed * (asked.length + asked.tail) * shape.index_width * shape.bytes
    own += 16 * count * asked.tail * shape.index_k if listed else 0
    # Of all questions: rows of fidelity are kept to a haystack's end.
    judged = 8 * len(cells) * asked.questions * heads * shape.layers * asked.judged
    return _codes(shape, asked, cells, together) + scores + layer + logits + tails + own + judged


def _graphed(
    shape: Shape, asked: Asked, turns: Sequence[tuple[Sequence[Cell], int]], free: int
) -> int:
    """Bytes that graphs hold: of each turn, where its rows take no more than a quarter of what is free yet.

    As `stepped.token_steps.steps_of` makes them, of fixed rows first; a model with an indexer of its own has none.
    Of memory that is the process's own they hold their share of it, all together.
    """
    if not shape.device or shape.index_heads:
        return 0
    total = 0
    for cells, together in dict.fromkeys((tuple(cells), together) for cells, together in turns):
        needs, taken = _both(shape, asked, cells, together), 0
        if shape.own:
            fits = sum(needs) <= GRAPHS * shape.device
            total = min(total + sum(needs), int(GRAPHS * shape.device)) if fits else total
            continue
        for need in needs:
            if 4 * need > free - total - taken:
                return total
            taken += need
        total += taken
    return total


def _both(shape: Shape, asked: Asked, cells: Sequence[Cell], together: int) -> tuple[int, int]:
    """Bytes of the rows of graphs, and of those between whose graphs hosts choose."""
    kinds = ([cell for cell in cells if is_fixed(cell) == fixed] for fixed in (True, False))
    fixed, hosted = (_rows(shape, asked, some, together) for some in kinds)
    return fixed, hosted


def _rows(shape: Shape, asked: Asked, cells: Sequence[Cell], together: int) -> int:
    """Bytes of rows at fixed shapes, as `stepped.token_steps.bytes_of` has them."""
    room = -(-(asked.length + asked.tail) // ROUND) * ROUND
    cache = shape.prefix(room) + 4 * room * shape.layers * shape.heads[1]
    wide = max((cell.k(asked.length) or 0 for cell in cells), default=0)
    noted = 8 * STEPS * shape.layers * shape.heads[0] * (wide + shape.width[0])
    leaves = [_leaf(replayed(cell.indexer)) for cell in cells if cell.indexer is not None]
    codes = room * shape.layers * sum(bytes_a_key(leaf, shape, asked.length) for leaf in leaves)
    return together * (len(cells) * (cache + noted) + int(codes))


def _codes(shape: Shape, asked: Asked, cells: Sequence[Cell], together: int) -> int:
    """Bytes of the codes of all recipes."""
    total = 0.0
    leaves = set[Indexer]()
    for indexer, some in groupby(cells, lambda cell: cell.indexer):
        if indexer is None:
            continue
        leaf, rows = _leaf(indexer), len(list(some)) * together
        whole = asked.length * shape.layers * bytes_a_key(leaf, shape, asked.length)
        total += whole if leaf.builds_as() not in leaves else 0
        leaves.add(leaf.builds_as())
        total += whole * _copies(leaf, shape, asked, rows)
    return int(total)


def _copies(leaf: Indexer, shape: Shape, asked: Asked, rows: int) -> float:
    """How often rows of a recipe hold the codes of their prefix beside it, to the end of what is asked."""
    each = 2 * rows * 9 / 8
    if isinstance(leaf, Clustered):  # until keys of their own are clustered
        return each if leaf.update and asked.tail >= leaf.update else 0
    if isinstance(leaf, h2o):  # once with what came since, until queries have voted
        return 1
    keys = asked.length * shape.heads[1] * shape.width[0]
    shared = isinstance(leaf, retrieval_attention) or (keys * rows > COPIED and held_once(leaf))
    return 0 if shared else each


def _leaf(indexer: Indexer) -> Indexer:
    """The recipe whose codes it chooses from; one that builds more than its base, or apart from it, itself."""
    while wraps(indexer):
        indexer = indexer.base
    return indexer


@cache
def bytes_a_key(recipe: Indexer, shape: Shape, length: int) -> float:
    """What a recipe holds for one of so many keys of all heads of a layer: what it states, or as it does for a few.

    Of those that state nothing and read more than keys, a byte a dimension; graphs in float32 stand in the host's
    memory.
    """
    groups, width = shape.heads[1], shape.width[0]
    if isinstance(recipe, Stateless):
        return 0
    if innermost(recipe).requires == "faiss":
        elsewhere = shape.on_device and recipe.traits().host
        return 0 if elsewhere else 4 * groups * width
    layer = CostShape(shape.heads[0], groups, *shape.width, T=length, e=shape.bytes)
    if isinstance(recipe, h2o):  # what evicts begins with every key
        layer = replace(layer, k=length)
    cost = stated(recipe, layer)
    if cost is not None:
        return cost.index
    if not isinstance(recipe, Scored | Paged) or recipe.needs - {"cache"}:
        return groups * width
    dtype = {2: torch.bfloat16, 4: torch.float32}.get(shape.bytes, torch.float32)
    keys = torch.zeros(1, groups, TRIED, width, dtype=dtype)
    step = Step(kv_heads=groups, inputs={"cache": Cache(keys, keys)})
    return recipe.build(keys, step.given_to(recipe)).nbytes / TRIED
