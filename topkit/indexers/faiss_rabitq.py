# pyright: strict, reportUnknownMemberType=false
"""FAISS RaBitQ: keys about their mean, rotated, as signs, or more bits, and a few numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar, cast

import torch
from torch import Tensor

from topkit.indexers.checks import whole
from topkit.indexers.faiss_base import plain
from topkit.indexers.faiss_indexer import FaissIndexer
from topkit.indexers.stated_cost import Cost, Shape, least

# Seed of the rotation.
SEED = 0


@dataclass(frozen=True)
class faiss_rabitq(FaissIndexer):
    """Scores every key by an unbiased estimate from the signs of its rotated difference to the mean.

    bits: of a dimension, 1 the paper's, up to 9 those of its extension; query_bits: of a query's dimension,
    0 for none rounded. The mean is that of the keys at build; the rotation is one for each width.
    Source: FAISS IndexRaBitQ (RaBitQ, arXiv 2405.12497, sections 3.1 to 3.3; more bits, arXiv 2409.09913).
    """

    bits: int = 1
    query_bits: int = 4

    family: ClassVar[str] = "quantized"
    source: ClassVar[str] = "RaBitQ, arXiv 2405.12497, in FAISS"
    cost: ClassVar[str] = (
        "reads bits / 8 bytes a dimension of every key, and two numbers of it, five beyond 1 bit"
    )
    examples: ClassVar[tuple[str, ...]] = ("faiss_rabitq()", "faiss_rabitq(bits=4, query_bits=0)")

    tuned: ClassVar[Mapping[str, Sequence[Any]]] = {"bits": range(1, 10)}

    def __post_init__(self) -> None:
        whole(self, "bits", 1, 9)
        whole(self, "query_bits", 0, 8)

    def turned(self, x: Tensor) -> Tensor:
        return x.float() @ rotation(x.shape[-1]).to(x.device)

    def costs(self, shape: Shape) -> Cost:
        # The bits behind the first stand apart, with two numbers of their own and a third for the bound.
        later = self.bits - 1
        numbers = 8 + 12 * least(later, 1)
        key = math.ceil(shape.D / 8) + math.ceil(shape.D * later / 8) + numbers
        return self.scanned(shape, key, 4 * shape.D, shape.D * shape.D)

    def make(self, faiss: Any, keys: Tensor) -> Any:
        index = faiss.IndexRaBitQ(keys.shape[1], faiss.METRIC_INNER_PRODUCT, self.bits)
        index.qb = self.query_bits
        index.train(plain(keys))
        index.add(plain(keys))
        return index

    def size(self, graph: Any) -> int:
        return graph.ntotal * graph.code_size + graph.center.size() * 4


@cache
def rotation(width: int) -> Tensor:
    """A random orthogonal map [width, width], the same in every process."""
    drawn = torch.randn(width, width, generator=torch.Generator().manual_seed(SEED))
    return cast(Tensor, torch.linalg.qr(drawn.double())[0]).float()
