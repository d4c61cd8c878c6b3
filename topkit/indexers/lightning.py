"""DeepSeek's Lightning Indexer: a small attention of its own, one selection for a whole layer."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from topkit.errors import InputError
from topkit.grammar import later
from topkit.indexers import index_keys
from topkit.indexers.base import Step
from topkit.indexers.checks import choice, flag
from topkit.indexers.lightning_weights import load
from topkit.indexers.scored import Codes, Scored
from topkit.indexers.stated_cost import Cost, Shape
from topkit.indexers.traits import Traits
from topkit.indexers.weights_file import path_of
from topkit.kernels.score import score_lightning
from topkit.kernels.score_select import score_select_lightning

GIVEN = "given"
# Index keys that no kernel reads as they are stored.
PLAIN = ("fp32", "int4")


@dataclass(frozen=True)
class lightning(Scored):
    """Scores a key by the weighted sum over index heads of ReLU(q . k), one shared key a token.

    `weights` is a safetensors file (topkit.experiments.train.lightning writes one from a model or trains
    one) or the name of a bundled one; "given" projects nothing and reads index_queries, index_keys
    and index_weights, unrotated, as the model itself computed them. dtype
    "fp8" rotates by Hadamard and stores e4m3 with one scale a vector, as DeepSeek's inference code does: a power of
    two (ue8m0), or as it comes by scale="float", and that of a largest magnitude of 1e-4 at least; "mxfp4" and
    "nvfp4" rotate too, and store packed blocks of e2m1 (topkit.kernels.fp4), as
    DeepSeek-V4's does with mxfp4; nvfp4's tensor scale is one, for index keys are normed; "int4" rotates and has one
    float scale a vector. hadamard=False does not rotate. Queries are rounded as keys are. "fp32" scores plainly.
    Source: DeepSeek-V3.2-Exp report, section 2.1 (arXiv 2512.02556); GLM-5's has interleaved RoPE.
    """

    weights: str = "reference"
    dtype: str = "fp32"
    scale: str = later("pow2")
    hadamard: bool = later(True)

    family: ClassVar[str] = "trained"
    source: ClassVar[str] = "arXiv 2512.02556"
    cost: ClassVar[str] = "reads one small key a token and layer"
    examples: ClassVar[tuple[str, ...]] = (
        "lightning()",
        "lightning(dtype='fp8')",
        "lightning(weights='given')",
        "lightning(weights='given', dtype='fp8')",
        "lightning(weights='given', dtype='fp8', scale='float')",
        "lightning(weights='given', dtype='mxfp4')",
        "lightning(weights='given', dtype='nvfp4')",
        "lightning(weights='given', dtype='int4')",
        "lightning(weights='given', dtype='int4', hadamard=False)",
    )

    remedy: ClassVar[str] = (
        "make weights for it by `topkit train lightning --model FOLDER` and give them as weights=FILE"
    )

    def traits(self) -> Traits:
        if self.weights == GIVEN:
            needs = {"index_queries", "index_keys", "index_weights"}
        else:
            needs = {"hidden", "rope"} | ({"latent"} if load(self.weights).reads_latent else set())
        return Traits(needs=frozenset(needs), score_all=True, fixed=self.dtype not in PLAIN)

    def widths(self) -> dict[str, int]:
        return {} if self.weights == GIVEN else load(self.weights).widths()

    def models(self) -> frozenset[str]:
        return frozenset() if self.weights == GIVEN else load(self.weights).models

    def files(self) -> tuple[Path, ...]:
        return () if self.weights == GIVEN else (path_of("lightning", self.weights),)

    def __post_init__(self) -> None:
        if self.dtype not in index_keys.DTYPES:
            known = f"{', '.join(index_keys.DTYPES[:-1])} or {index_keys.DTYPES[-1]}"
            raise InputError(f"{type(self).__name__}: dtype must be {known}; got {self.dtype!r}")
        choice(self, "scale", ("float", "pow2"))
        if self.dtype != "fp8" and self.scale != "pow2":
            raise InputError(f"lightning: scale is of fp8 keys; got dtype={self.dtype!r}")
        flag(self, "hadamard")
        if self.dtype == "fp32" and not self.hadamard:
            raise InputError("lightning: fp32 keys are not rotated; leave hadamard out")
        if self.weights != GIVEN:
            load(self.weights)

    def key_width(self, shape: Shape) -> float:
        """Numbers of an index key, those of a head where they are given."""
        return shape.D if self.weights == GIVEN else load(self.weights).width

    def heads_of(self, shape: Shape) -> float:
        """Index heads, as many as query heads where they are given."""
        return shape.Hq if self.weights == GIVEN else load(self.weights).heads

    def code_bytes(self, shape: Shape) -> float:
        return index_keys.bytes_of(self.dtype, self.key_width(shape))

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
            index_keys.require_normed(own)
        return index_keys.encoded(own, self.dtype, step.backend, self.scale, self.hadamard)

    def write(self, keys: Tensor, codes: Codes, at: int | Tensor, step: Step) -> None:
        if self.dtype == "fp32":
            super().write(keys, codes, at, step)
        else:
            own = self._keys(keys, step)
            how = (self.dtype, step.backend, self.scale, self.hadamard)
            index_keys.write(own, codes, at, *how)

    def score(self, queries: Tensor, codes: Codes, step: Step) -> Tensor:
        vectors, gates, scales = self._queries(queries, codes, step)
        keys = self._read(codes, vectors)
        return score_lightning(vectors, keys, gates, **scales, backend=step.backend)

    def pick(
        self, queries: Tensor, codes: Codes, k: int, step: Step, pool: str | None = None
    ) -> Tensor:
        if self.dtype in PLAIN and step.backend == "triton":
            raise InputError(f"{self} has no Triton kernel; lightning(dtype='fp8') has")
        vectors, gates, scales = self._queries(queries, codes, step)
        seen = {"start": step.start, "stop": step.stop}
        if step.stop is None and queries.shape[2] > 1:
            seen["stop"] = step.stops(codes["vectors"].shape[2], queries.shape[2], queries.device)
        how: dict[str, Any] = {"order": "score" if step.ordered else None, "backend": step.backend}
        how["check"] = step.checks
        keys = self._read(codes, vectors)
        return score_select_lightning(vectors, keys, gates, k, **scales, **seen, **how)

    def visible_scores(
        self, queries: Tensor, codes: Codes, step: Step, pool: str | None = None
    ) -> Tensor:
        # One list for all heads: there is nothing to pool.
        vectors, gates, scales = self._queries(queries, codes, step)
        seen = {"start": step.start, "stop": step.stop, "backend": step.backend}
        return score_lightning(vectors, self._read(codes, vectors), gates, **scales, **seen)

    def _read(self, codes: Codes, vectors: Tensor) -> Tensor:
        """Keys as scoring takes them: those of int4, which it does not know, decoded."""
        if self.dtype != "int4":
            return codes["vectors"]
        return index_keys.decoded(codes["vectors"], codes["scale"], "int4", vectors.shape[3])

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
        asked = index_keys.encoded(vectors, self.dtype, step.backend, self.scale, self.hadamard)
        scales = {"query_scale": asked.get("scale"), "key_scale": codes.get("scale")}
        if self.dtype == "int4":
            width = vectors.shape[3]
            return index_keys.decoded(asked["vectors"], asked["scale"], "int4", width), gates, {}
        return asked["vectors"], gates, scales

    def asked(self, queries: Tensor, step: Step) -> tuple[Tensor, Tensor]:
        """Index queries [B, H, t, d] of the tokens of a call, as they are stored, and gates [B, t, H]."""
        vectors, gates, scales = self._queries(queries, {}, step)
        # Queries of int4 come decoded.
        return index_keys.decoded(vectors, scales.get("query_scale"), self.dtype), gates

    def vectors_of(self, codes: Codes) -> Tensor:
        """The index keys that codes stand for, in float32; all but those of "fp32" rotated, as queries are."""
        return index_keys.decoded(codes["vectors"], codes.get("scale"), self.dtype)
