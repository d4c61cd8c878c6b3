"""DeepSeek's Lightning Indexer: a small attention of its own, one selection for a whole layer."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from topkit.errors import InputError
from topkit.indexers.base import Step
from topkit.indexers.lightning_weights import load
from topkit.indexers.scored import Codes, Scored
from topkit.indexers.stated_cost import Cost, Shape
from topkit.indexers.traits import Traits
from topkit.indexers.weights_file import path_of
from topkit.kernels import fp4
from topkit.kernels.codes import factors, scales_stored, stored
from topkit.kernels.quantize_append import quantize_append
from topkit.kernels.score import score_lightning
from topkit.kernels.score_select import score_select_lightning

GIVEN = "given"
DTYPES = ("fp32", "fp8", *fp4.BLOCK)
# Magnitudes that nvfp4 holds whose tensor scale is one: what is larger is cut, what is smaller lost.
NVFP4 = (2.0**-4, fp4.LARGEST_SCALED)


@dataclass(frozen=True)
class lightning(Scored):
    """Scores a key by the weighted sum over index heads of ReLU(q . k), one shared key a token.

    `weights` is a safetensors file (topkit.experiments.train.lightning writes one from a model or trains
    one) or the name of a bundled one; "given" projects nothing and reads index_queries, index_keys
    and index_weights, unrotated, as the model itself computed them. dtype
    "fp8" rotates by Hadamard and stores e4m3 with one power-of-two scale a vector, as DeepSeek's
    inference code does; "mxfp4" and "nvfp4" rotate too, and store packed blocks of e2m1 (topkit.kernels.fp4), as
    DeepSeek-V4's does with mxfp4; nvfp4's tensor scale is one, for index keys are normed. Queries are rounded as
    keys are. "fp32" scores plainly.
    Source: DeepSeek-V3.2-Exp report, section 2.1 (arXiv 2512.02556); GLM-5's has interleaved RoPE.
    """

    weights: str = "reference"
    dtype: str = "fp32"

    family: ClassVar[str] = "trained"
    source: ClassVar[str] = "arXiv 2512.02556"
    cost: ClassVar[str] = "reads one small key a token and layer"
    examples: ClassVar[tuple[str, ...]] = (
        "lightning()",
        "lightning(dtype='fp8')",
        "lightning(weights='given')",
        "lightning(weights='given', dtype='fp8')",
        "lightning(weights='given', dtype='mxfp4')",
        "lightning(weights='given', dtype='nvfp4')",
    )

    remedy: ClassVar[str] = (
        "make weights for it by `topkit train lightning --model FOLDER` and give them as weights=FILE"
    )

    def traits(self) -> Traits:
        if self.weights == GIVEN:
            needs = {"index_queries", "index_keys", "index_weights"}
        else:
            needs = {"hidden", "rope"} | ({"latent"} if load(self.weights).reads_latent else set())
        return Traits(needs=frozenset(needs), score_all=True, fixed=self.dtype == "fp8")

    def widths(self) -> dict[str, int]:
        return {} if self.weights == GIVEN else load(self.weights).widths()

    def models(self) -> frozenset[str]:
        return frozenset() if self.weights == GIVEN else load(self.weights).models

    def files(self) -> tuple[Path, ...]:
        return () if self.weights == GIVEN else (path_of("lightning", self.weights),)

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            known = f"{', '.join(DTYPES[:-1])} or {DTYPES[-1]}"
            raise InputError(f"{type(self).__name__}: dtype must be {known}; got {self.dtype!r}")
        if self.weights != GIVEN:
            load(self.weights)

    def key_width(self, shape: Shape) -> float:
        """Numbers of an index key, those of a head where they are given."""
        return shape.D if self.weights == GIVEN else load(self.weights).width

    def heads_of(self, shape: Shape) -> float:
        """Index heads, as many as query heads where they are given."""
        return shape.Hq if self.weights == GIVEN else load(self.weights).heads

    def code_bytes(self, shape: Shape) -> float:
        width = self.key_width(shape)
        if self.dtype in fp4.BLOCK:
            return math.ceil(width / 2) + math.ceil(width / fp4.BLOCK[self.dtype])
        return width + 4 if self.dtype == "fp8" else 4 * width

    def costs(self, shape: Shape) -> Cost:
        s, cost = shape, replace(super().costs(shape), lists=shape.Hk)
        if self.weights == GIVEN:
            return replace(cost, build=s.T * s.D, append=s.D)
        w = load(self.weights)
        # One key a token for all heads, projected from its hidden state, as are queries and gates.
        key = w.widths()["hidden"] * w.width
        query = w.heads * (w.width * w.widths()["latent" if w.reads_latent else "hidden"])
        gates = w.heads * w.widths()["hidden"]
        operations = w.heads * s.T * w.width + query + gates
        return replace(cost, operations=operations, build=s.T * key, append=key)

    def encode(self, keys: Tensor, step: Step) -> Codes:
        own = self._keys(keys, step)
        if self.dtype == "nvfp4":
            _require_normed(own)
        return self._stored(own, step)

    def write(self, keys: Tensor, codes: Codes, at: int | Tensor, step: Step) -> None:
        if self.dtype == "fp32":
            super().write(keys, codes, at, step)
        else:
            self._put(self._keys(keys, step), codes, at, step)

    def score(self, queries: Tensor, codes: Codes, step: Step) -> Tensor:
        vectors, gates, scales = self._queries(queries, codes, step)
        return score_lightning(vectors, codes["vectors"], gates, **scales, backend=step.backend)

    def pick(
        self, queries: Tensor, codes: Codes, k: int, step: Step, pool: str | None = None
    ) -> Tensor:
        if self.dtype != "fp8" and step.backend == "triton":
            raise InputError(f"{self} has no Triton kernel; lightning(dtype='fp8') has")
        vectors, gates, scales = self._queries(queries, codes, step)
        seen = {"start": step.start, "stop": step.stop}
        if step.stop is None and queries.shape[2] > 1:
            seen["stop"] = step.stops(codes["vectors"].shape[2], queries.shape[2], queries.device)
        how: dict[str, Any] = {"order": "score" if step.ordered else None, "backend": step.backend}
        how["check"] = step.checks
        return score_select_lightning(vectors, codes["vectors"], gates, k, **scales, **seen, **how)

    def visible_scores(
        self, queries: Tensor, codes: Codes, step: Step, pool: str | None = None
    ) -> Tensor:
        # One list for all heads: there is nothing to pool.
        vectors, gates, scales = self._queries(queries, codes, step)
        seen = {"start": step.start, "stop": step.stop, "backend": step.backend}
        return score_lightning(vectors, codes["vectors"], gates, **scales, **seen)

    def _keys(self, keys: Tensor, step: Step) -> Tensor:
        """Index keys [B, 1, t, d] of the tokens of a call."""
        if self.weights == GIVEN:
            return step.input("index_keys").to(torch.float32, copy=True)
        return load(self.weights, keys.device).layer(step.layer).keys(step.hidden, step.rope)

    def _queries(
        self, queries: Tensor, codes: Codes, step: Step
    ) -> tuple[Tensor, Tensor, dict[str, Any]]:
        """Index queries and gates of the tokens of a call, and the scales of both sides."""
        if self.weights == GIVEN:
            vectors = step.input("index_queries").float()
            gates = step.input("index_weights").float()
        else:
            w = load(self.weights, queries.device).layer(step.layer)
            vectors = w.queries(step.latent if w.reads_latent else step.hidden, step.rope)
            gates = w.gates(step.hidden)
        asked = self._stored(vectors, step)
        scales = {"query_scale": asked.get("scale"), "key_scale": codes.get("scale")}
        if self.dtype in fp4.BLOCK:
            return self.vectors_of(asked), gates, scales | {"query_scale": None}
        return asked["vectors"], gates, scales

    def asked(self, queries: Tensor, step: Step) -> tuple[Tensor, Tensor]:
        """Index queries [B, H, t, d] of the tokens of a call, as they are stored, and gates [B, t, H]."""
        vectors, gates, scales = self._queries(queries, {}, step)
        return _decoded(vectors, scales["query_scale"]), gates

    def vectors_of(self, codes: Codes) -> Tensor:
        """The index keys that codes stand for, in float32; all but those of "fp32" rotated, as queries are."""
        if self.dtype in fp4.BLOCK:
            packed, scale = codes["vectors"], codes["scale"]
            return fp4.dequantize(packed, scale, self.dtype, 2 * packed.shape[-1])
        return _decoded(codes["vectors"], codes.get("scale"))

    def _stored(self, vectors: Tensor, step: Step) -> Codes:
        if self.dtype == "fp32":
            return {"vectors": vectors}
        kind, width = stored(self._code, vectors.shape[-1])
        (scale, *_), count = scales_stored(self._code, vectors.shape[-1])
        codes = {
            "vectors": vectors.new_empty(*vectors.shape[:-1], width, dtype=kind),
            "scale": vectors.new_empty(*vectors.shape[:-1], count, dtype=scale),
        }
        self._put(vectors, codes, 0, step)
        return codes

    @property
    def _code(self) -> str:
        """The code of topkit.kernels.codes."""
        return "fp8_e4m3" if self.dtype == "fp8" else self.dtype

    def _put(self, vectors: Tensor, codes: Codes, at: int | Tensor, step: Step) -> None:
        """Write float32 vectors, rotated, at the slots from `at` on."""
        quantize_append(
            vectors.detach(), codes["vectors"], codes["scale"], at,
            dtype=self._code, hadamard=True, pow2=self.dtype == "fp8", backend=step.backend,
        )  # fmt: skip


def _require_normed(keys: Tensor) -> None:
    """Require index keys [B, 1, t, d] of magnitudes that blocks of nvfp4 hold without a scale of their own."""
    largest = float(keys.abs().amax()) if keys.numel() else 1.0
    if largest == 0 or NVFP4[0] <= largest <= NVFP4[1] or largest != largest:
        return
    raise InputError(
        f"lightning: nvfp4 holds index keys whose largest magnitude is {NVFP4[0]:g} to {NVFP4[1]:g}; got "
        f"{largest:g}; scale them and the queries, or take dtype='mxfp4'"
    )


def _decoded(vectors: Tensor, scale: Tensor | None) -> Tensor:
    return vectors.float() if scale is None else vectors.float() * factors(scale)
