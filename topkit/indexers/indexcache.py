# pyright: strict
"""IndexCache: a quarter of the indexers stay."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar

from topkit.errors import InputError
from topkit.indexers.base import Indexer
from topkit.indexers.layers import Layered
from topkit.indexers.lightning import lightning


@dataclass(frozen=True)
class indexcache(Layered):
    """Keeps the indexers of the layers that `pattern` calls F, and reuses their lists where it says S.

    The pattern is repeated to the model's depth; one as long as the model is the result of a search, which the
    paper makes by the loss, and GLM-5's config spells. Source: arXiv 2603.12201, section 3.
    """

    base: Indexer = lightning()  # noqa: RUF009 (a frozen value)
    pattern: str = "FSSS"

    source: ClassVar[str] = "arXiv 2603.12201"
    examples: ClassVar[tuple[str, ...]] = ("indexcache()", "indexcache(sign(), pattern='FFS')")

    def __post_init__(self) -> None:
        if not re.fullmatch("F[FS]*", str(self.pattern)):
            raise InputError(
                "indexcache: pattern must be letters F (full) and S (shared), F first, as FSSS; got "
                f"{self.pattern!r}"
            )
        super().__post_init__()

    def selects(self, layer: int) -> bool:
        return self.pattern[layer % len(self.pattern)] == "F"
