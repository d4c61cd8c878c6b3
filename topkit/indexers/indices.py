"""Ready lists of slots, as another engine chose them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from torch import Tensor

from topkit.errors import InputError
from topkit.indexers.base import Index, Indexer, Selection, Step
from topkit.indexers.checks import flag
from topkit.indexers.indices_file import IndicesFile, read
from topkit.indexers.traits import Traits
from topkit.kernels.compact import compact


@dataclass(frozen=True)
class indices(Indexer):
    """Selects the slots that a file lists for each sample, layer and position of a capture.

    Of `topkit measure` alone. Lists in no order are taken whole, at a k that none exceeds; ordered=True
    says that they come best first, and may be cut. docs/indices.md has the file's form.
    """

    file: str
    ordered: bool = False

    family: ClassVar[str] = "given"
    source: ClassVar[str] = "SGLang, vLLM"
    cost: ClassVar[str] = "what chose them is not counted"

    def __post_init__(self) -> None:
        flag(self, "ordered")
        read(self.file)

    def files(self) -> tuple[Path, ...]:
        return (Path(self.file),)

    def traits(self) -> Traits:
        return Traits(needs=frozenset({"sample"}), exhaustive=False, may_come_short=True)

    def build(self, keys: Tensor, step: Step) -> Index:
        return Lists(self, read(self.file), step.layer, step.sample, keys.shape[2])


@dataclass
class Lists(Index):
    """The lists of one layer of one sample."""

    recipe: indices
    file: IndicesFile
    layer: int
    sample: int
    slots: int

    @property
    def length(self) -> int:
        return self.slots

    @property
    def nbytes(self) -> int:
        return 0

    def append(self, keys: Tensor, step: Step) -> None:
        self.slots += keys.shape[2]

    def truncate(self, length: int, step: Step) -> None:
        self.slots = length

    def reorder(self, rows: Tensor) -> None:
        if rows.numel() != 1:
            raise InputError(
                f"{self.recipe} holds the lists of one sample; got {rows.numel()} rows"
            )

    def select(self, queries: Tensor, k: int, step: Step) -> Selection:
        at = step.stops(self.slots, queries.shape[2], queries.device)[0].cpu() - 1
        lists = self.file.lists(self.layer, self.sample, at, self.slots)
        if queries.shape[1] % lists.shape[0]:
            raise InputError(
                f"{self.recipe}: layer {self.layer} has {lists.shape[0]} lists a query; expected 1, one "
                f"a KV head, or one a query head, of {queries.shape[1]}"
            )
        most = int((lists >= 0).sum(-1).max())
        if most > k and not self.recipe.ordered:
            raise InputError(
                f"{self.recipe} lists up to {most} slots in no order, which k = {k} would cut; ask for "
                f"k = {most}, or say ordered=True where they come best first"
            )
        # Lists in no order are never cut: one that names a slot twice is seen by whoever judges it.
        width = max(min(k, self.slots), 0 if self.recipe.ordered else most)
        return Selection(compact(lists, width)[None].to(queries.device))
