# pyright: strict
"""Keys in 8, 4 or 2 bits, one scale a key, or one a block of it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from topkit.errors import InputError
from topkit.grammar import later
from topkit.indexers.base import Index, Step
from topkit.indexers.checks import choice, flag
from topkit.indexers.mean_key import about_mean, mean_key
from topkit.indexers.rotation import padded, rotated
from topkit.indexers.scored import Codes, Scored, pick_codes, score_visible_codes
from topkit.indexers.stated_cost import Cost, Shape, power_of_two
from topkit.indexers.tensor_scale import ScaledIndex, tensor_scale
from topkit.indexers.traits import Traits
from topkit.kernels import fp4
from topkit.kernels.codes import DTYPES, PACKED_BITS, scales_stored, stored
from topkit.kernels.quantize_append import quantize_append
from topkit.kernels.score import score_codes


@dataclass(frozen=True)
class quantized(Scored):
    """Scores float queries against rounded keys, and gives up the digits that rounding drops.

    int8 rounds to the nearest of -127..127; int4 and int2 cut the range of a key into 16 and 4 equal steps, store
    the middle of one (-1.5, -0.5, 0.5, 1.5 steps), and are packed. scale="pow2" rounds the scale up to a power of two, in
    one byte, as DeepSeek's ue8m0 does; hadamard=True spreads outliers by an orthonormal rotation, of
    zeros as well up to a power of two; center=True takes off the mean of the keys at build. amax is the
    magnitude below which the scale does not follow a key, 1e-4 in DeepSeek's code.
    mxfp4 and nvfp4 (topkit.kernels.fp4) have a scale of one byte for 32 and 16 dimensions; for nvfp4 a
    head's keys are divided by a float32 scale that its largest magnitude at build sets, and later keys that
    exceed it are cut to it.
    Source: DeepSeek-V3.2-Exp, inference/kernel.py (fp8, pow2, Hadamard); DeepSeek-V4's (mxfp4); NVIDIA,
    arXiv 2509.25149 (nvfp4).
    """

    dtype: str = "int8"
    hadamard: bool = False
    scale: str = "float"
    center: bool = later(False)
    amax: float = later(0.0)

    family: ClassVar[str] = "quantized"
    source: ClassVar[str] = "DeepSeek-V3.2-Exp"
    cost: ClassVar[str] = (
        "reads 1, 1/2 or 1/4 byte a dimension, and a scale; fp4 one of 1 byte a block"
    )
    tuned: ClassVar[Mapping[str, Sequence[Any]]] = {"dtype": ("int2", "int4", "int8")}
    examples: ClassVar[tuple[str, ...]] = (
        "quantized()",
        "quantized(dtype='fp8_e4m3', hadamard=True, scale='pow2')",
        "quantized(dtype='fp8_e4m3', hadamard=True, scale='pow2', amax=1e-4)",
        "quantized(dtype='int4', scale='pow2')",
        "quantized(dtype='int2', hadamard=True)",
        "quantized(dtype='int4', center=True)",
        "quantized(dtype='mxfp4', hadamard=True)",
        "quantized(dtype='nvfp4', center=True)",
    )

    def __post_init__(self) -> None:
        choice(self, "dtype", [dtype for dtype in DTYPES if dtype != "sign"])
        choice(self, "scale", ("float", "pow2"))
        if self.dtype in fp4.BLOCK and self.scale != "float":
            raise InputError(f"quantized: {self.dtype} has scales of its own; leave scale out")
        if not 0 <= self.amax < math.inf or (self.dtype in fp4.BLOCK and self.amax):
            raise InputError(
                f"quantized: amax must be 0 or a magnitude, and is of other keys than fp4; got {self.amax}"
            )
        flag(self, "hadamard")
        flag(self, "center")

    def traits(self) -> Traits:
        return Traits(score_all=True, fixed=True, drifts=self.center or self.dtype == "nvfp4")

    def code_bytes(self, shape: Shape) -> float:
        width = power_of_two(shape.D) if self.hadamard else shape.D
        if self.dtype in fp4.BLOCK:
            return shape.Hk * (math.ceil(width / 2) + math.ceil(width / fp4.BLOCK[self.dtype]))
        bits = PACKED_BITS.get(self.dtype, 8)
        codes = width if bits == 8 else math.ceil(width / (8 // bits))
        return shape.Hk * (codes + (1 if self.scale == "pow2" else 4))

    def costs(self, shape: Shape) -> Cost:
        cost = super().costs(shape)
        if self.dtype != "nvfp4":
            return cost
        scale = 4 * shape.Hk  # of the tensor
        return replace(cost, index=cost.index + scale / shape.T, read=cost.read + scale)

    def build(self, keys: Tensor, step: Step) -> Index:
        if self.dtype == "nvfp4":
            return self._scaled(keys, step)
        return about_mean(self, keys, step) if self.center else super().build(keys, step)

    def encode(self, keys: Tensor, step: Step) -> Codes:
        keys = padded(keys) if self.hadamard else keys
        kind, width = stored(self.dtype, keys.shape[3])
        (scale, *_), count = scales_stored(self.dtype, keys.shape[3])
        scale = torch.int8 if self.scale == "pow2" else scale
        codes = {
            "codes": keys.new_empty(*keys.shape[:3], width, dtype=kind),
            self._scale: keys.new_empty(*keys.shape[:3], count, dtype=scale),
        }
        self.write(keys, codes, 0, step)
        return codes

    def score(self, queries: Tensor, codes: Codes, step: Step) -> Tensor:
        turned, coding = self._rotated(queries, codes, step)
        return score_codes(turned, codes["codes"], **coding, backend=step.backend)

    def write(self, keys: Tensor, codes: Codes, at: int | Tensor, step: Step) -> None:
        how: dict[str, Any] = {
            "dtype": self.dtype,
            "hadamard": self.hadamard,
            "backend": step.backend,
            "amax": self.amax,
        }
        keys = padded(keys) if self.hadamard else keys
        quantize_append(keys.detach(), codes["codes"], codes[self._scale], at, **how)

    def pick(
        self, queries: Tensor, codes: Codes, k: int, step: Step, pool: str | None = None
    ) -> Tensor:
        turned, coding = self._rotated(queries, codes, step)
        return pick_codes(turned, codes["codes"], k, step, pool, **coding)

    def visible_scores(
        self, queries: Tensor, codes: Codes, step: Step, pool: str | None = None
    ) -> Tensor:
        turned, coding = self._rotated(queries, codes, step)
        return score_visible_codes(turned, codes["codes"], step, pool, **coding)

    def _scaled(self, keys: Tensor, step: Step) -> Index:
        mean = mean_key(keys, step) if self.center else None
        own = keys if mean is None else keys - mean
        own = rotated(own.detach(), step.backend) if self.hadamard else own
        scale = tensor_scale(own, step, fp4.LARGEST_SCALED)
        index = ScaledIndex(self, scale=scale, mean=mean)
        index.append(keys, step)
        return index

    @property
    def _scale(self) -> str:
        return "exponent" if self.scale == "pow2" else "scale"

    def _rotated(self, queries: Tensor, codes: Codes, step: Step) -> tuple[Tensor, dict[str, Any]]:
        """Queries as the keys were rotated, and how their codes are read."""
        turned = rotated(queries, step.backend) if self.hadamard else queries
        return turned, {"dtype": self.dtype, "scale": codes[self._scale]}
