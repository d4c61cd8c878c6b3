# pyright: strict
"""HashAttention: bits that were learned for queries and for keys, compared by Hamming distance."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from torch import Tensor

from topkit.indexers.base import Step
from topkit.indexers.hashattention_file import HashFile, load
from topkit.indexers.scored import Codes, Scored, pick_codes, score_visible_codes
from topkit.indexers.stated_cost import Shape
from topkit.indexers.traits import Traits
from topkit.kernels.codes import stored
from topkit.kernels.quantize_append import quantize_append
from topkit.kernels.score import score_codes


@dataclass(frozen=True)
class hashattention(Scored):
    """Scores a key by the bits that it shares with the query minus those in which they differ.

    Bits are the signs of an MLP a head, one of queries and one of keys; zero counts as positive. `weights` is a
    safetensors file: LAYER.query.N.weight [heads, out, in] and .bias [heads, out] of each linear map N of an MLP,
    LAYER.key.N alike, of query or KV heads; its metadata may name the activation between them (silu) and,
    under `model`, the digests of the model that it was learned for. The paper's maps give 32 bits by two
    hidden layers of 128. Source: arXiv 2412.14468, section 4.
    """

    weights: str

    family: ClassVar[str] = "hashing"
    source: ClassVar[str] = "arXiv 2412.14468"
    cost: ClassVar[str] = "reads the bits of a key, 32 in the paper"

    def __post_init__(self) -> None:
        load(self.weights)

    def traits(self) -> Traits:
        return Traits(score_all=True, fixed=True)

    def widths(self) -> dict[str, int]:
        return {"head_dim": load(self.weights).first["query"].width}

    def models(self) -> frozenset[str]:
        return load(self.weights).models

    def files(self) -> tuple[Path, ...]:
        return (Path(self.weights),)

    def code_bytes(self, shape: Shape) -> float:
        first = load(self.weights).first
        each = first["query"].heads == first["key"].heads
        return (shape.Hq if each else shape.Hk) * math.ceil(first["key"].bits / 8)

    def encode(self, keys: Tensor, step: Step) -> Codes:
        made = self._file(keys).maps(step.layer, "key")(keys.detach())
        kind, width = stored("sign", made.shape[3])
        codes = {"bits": made.new_empty(*made.shape[:3], width, dtype=kind)}
        quantize_append(made, codes["bits"], None, 0, dtype="sign")
        return codes

    def write(self, keys: Tensor, codes: Codes, at: int | Tensor, step: Step) -> None:
        made = self._file(keys).maps(step.layer, "key")(keys.detach())
        quantize_append(made, codes["bits"], None, at, dtype="sign")

    def score(self, queries: Tensor, codes: Codes, step: Step) -> Tensor:
        signs = self._signs(queries, step)
        return score_codes(signs, codes["bits"], dtype="sign", backend=step.backend)

    def pick(
        self, queries: Tensor, codes: Codes, k: int, step: Step, pool: str | None = None
    ) -> Tensor:
        return pick_codes(self._signs(queries, step), codes["bits"], k, step, pool, dtype="sign")

    def visible_scores(
        self, queries: Tensor, codes: Codes, step: Step, pool: str | None = None
    ) -> Tensor:
        signs = self._signs(queries, step)
        return score_visible_codes(signs, codes["bits"], step, pool, dtype="sign")

    def _signs(self, queries: Tensor, step: Step) -> Tensor:
        """The bits of queries as 1 and -1 [B, Hq, Tq, bits]."""
        made = self._file(queries).maps(step.layer, "query")(queries)
        return (made >= 0).float() * 2 - 1

    def _file(self, vectors: Tensor) -> HashFile:
        return load(self.weights, vectors.device)
