"""Token steps of a model over fixed rows, each the replay of one CUDA graph, kept from haystack to haystack.

A capture costs as much Python as two steps, kernel by kernel.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from transformers import PreTrainedModel

from topkit.documents.digest import State, state_of
from topkit.errors import InputError
from topkit.experiments.decode.graph_capture import Parts
from topkit.experiments.evaluate.built import Built
from topkit.experiments.evaluate.gpu_share import room_for_graphs
from topkit.experiments.evaluate.stepped.fixed_rows import FixedRows
from topkit.experiments.evaluate.stepped.groups import Group, Way, groups_of
from topkit.experiments.model.attention import switched_attention
from topkit.experiments.runs.cells import Cell, needs
from topkit.experiments.runs.identity import within

# Slots that buffers are a multiple of, so that haystacks of about one length share them.
ROUND = 256
# Steps whose selections are kept to be judged together.
STEPS = 32


class TokenSteps:
    """The steps of a model over fixed rows, all of them in one way.

    files: the states of those that the cells' recipes read; size: bytes that the rows took.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        rows: FixedRows,
        cells: Sequence[Cell],
        files: Sequence[State],
        size: int,
    ) -> None:
        self.rows, self.cells, self.files, self.size = rows, tuple(cells), files, size
        self.addresses = _addresses(model)
        self.ids = torch.zeros(rows.count, 1, dtype=torch.long, device=rows.device)
        self._read = bool(needs(cells) & {"hidden", "latent", "rope"})
        # Made already, as transformers sees it, which then makes none; nobody has use for one.
        self._mask = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=rows.device)
        self._graphs: dict[Way, tuple[Parts, Tensor]] = {}

    def serves(
        self, model: PreTrainedModel, groups: tuple[Group, ...], files: Sequence[State], need: int
    ) -> bool:
        """Whether these steps are those of a model whose weights stand where they stood, with room enough."""
        same = self.rows.groups == groups and self.addresses == _addresses(model)
        return same and self.files == files and self.fits(need)

    def fits(self, need: int) -> bool:
        """Whether there is room for so many slots, and not far too much."""
        return need <= self.rows.room <= 2 * need + ROUND

    def step(self, model: PreTrainedModel, way: Way) -> Tensor:
        """The next token's logits [R, 1, V], which the next step writes over."""
        if self.rows.device.type != "cuda":
            return self._call(model, way)
        if way not in self._graphs:
            with self.rows.idle():
                made = Parts.of(lambda: self._call(model, way), self.rows.device)
            self._graphs[way] = made
        graph, logits = self._graphs[way]
        graph.replay()
        return logits

    def _call(self, model: PreTrainedModel, way: Way) -> Tensor:
        def attend(call: Any) -> Tensor:
            call.require_plain(softmax=True)
            return self.rows.attend(call, way)

        with switched_attention(model, attend, inputs=self._read):
            return model(
                input_ids=self.ids,
                position_ids=self.rows.at.expand(self.rows.count, 1),
                attention_mask=self._mask,
                use_cache=False,
                logits_to_keep=1,
            ).logits


Kept = dict[tuple[Cell, ...], TokenSteps]
# The last steps of each model, by the cells of their rows.
_kept: WeakKeyDictionary[PreTrainedModel, Kept] = WeakKeyDictionary()


def steps_of(
    model: PreTrainedModel,
    wanted: Mapping[tuple[Cell, ...], type[FixedRows]],
    context: int,
    built: Built,
    need: int,
) -> Kept:
    """The steps of rows of some cells each, of a kind, with at least `need` slots, and others that were kept.

    Raises: InputError where there is no memory for them.
    """
    kept, groups = _kept.pop(model, {}), {cells: groups_of(cells, context) for cells in wanted}
    files = {cells: _files_of(cells) for cells in wanted}
    for cells, steps in list(kept.items()):
        own = groups.get(cells, steps.rows.groups), files.get(cells, steps.files)
        if not steps.serves(model, *own, need):
            del kept[cells]  # before other buffers are made
    room = max((steps.rows.room for steps in kept.values()), default=-(-need // ROUND) * ROUND)
    require_windows(built, room)
    for cells, kind in wanted.items():
        if cells not in kept:
            size = bytes_of(built, groups[cells], room)
            if not has_room(built, size, kept.values()):
                kept = {own: steps for own, steps in kept.items() if own in wanted}
            if not has_room(built, size, kept.values()):
                raise InputError("caches of all rows do not fit")
            rows = kind(groups[cells], built.prefix, built, room, STEPS)
            kept[cells] = TokenSteps(model, rows, cells, files[cells], size)
        kept[cells].rows.begin(built.prefix, built)
    return kept


def release(model: PreTrainedModel, need: int) -> None:
    """Let go of steps that have too little room for so many slots, or far too much, before these are made."""
    if any(not steps.fits(need) for steps in _kept.get(model, {}).values()):
        del _kept[model]


def keep(model: PreTrainedModel, steps: Kept) -> None:
    """Leave steps to the next haystack."""
    _kept[model] = dict(steps)


def require_windows(built: Built, room: int) -> None:
    """Require that a sliding window chooses of the prefix already, or of no length that there is room for.

    Raises: InputError.
    """
    for past in built.prefix.values():
        if past.window is not None and past.length <= past.window < room:
            raise InputError("a window comes to slide while answers are read")


def has_room(built: Built, size: int, kept: Collection[TokenSteps]) -> bool:
    """Whether rows of `size` bytes may be made, beside those that are kept."""
    device = next(iter(built.prefix.values())).cache.keys.device
    # Said when they were made: what is kept may be of recipes that nobody builds of this haystack.
    return size <= room_for_graphs(device, sum(steps.size for steps in kept))


def bytes_of(built: Built, groups: Sequence[Group], room: int) -> int:
    """What rows of so many slots take: keys, values and codes of each, and what is noted of STEPS steps.

    Codes that stand in the host's memory take none.
    """
    rows, total = groups[-1].rows.stop, 0.0
    wide = max((k for group in groups for k in group.ks), default=0)
    there = [g for g in groups if g.replayed is not None and not g.replayed.traits().host]
    for number, past in built.prefix.items():
        keys, values = past.cache.keys, past.cache.values
        assert values is not None
        share = room / past.length
        total += rows * share * (keys.nbytes + values.nbytes + keys.nbytes / keys.shape[3])
        total += STEPS * rows * past.heads * (8 * wide + 8 * keys.shape[3])
        indices = ((g, built.of(g.indexer)[number]) for g in there if g.indexer is not None)
        total += sum(group.count * share * index.nbytes for group, index in indices)
    return int(total)


def _files_of(cells: Sequence[Cell]) -> list[State]:
    """The states of the files that cells' recipes read. Raises: InputError for one that is gone."""
    recipes = dict.fromkeys(cell.indexer for cell in cells if cell.indexer is not None)
    files = [path for recipe in recipes for one in within(recipe) for path in one.files()]
    try:
        return [state_of(path) for path in files]
    except OSError as error:
        raise InputError(f"{error.filename}: {error.strerror}") from error


def _addresses(model: PreTrainedModel) -> tuple[int, ...]:
    return tuple(x.data_ptr() for x in (*model.parameters(), *model.buffers()))
