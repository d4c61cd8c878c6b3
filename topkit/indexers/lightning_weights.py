"""Projections of lightning indexers, read from files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import layer_norm, linear

from topkit.documents.digest import State, state_of
from topkit.errors import InputError
from topkit.indexers.lasting import lasting
from topkit.indexers.lightning_file import REMEDY, decoded, require
from topkit.indexers.weights_file import path_of, read_tensors


@dataclass(frozen=True)
class LayerWeights:
    """One layer's projections, float32."""

    tensors: dict[str, Tensor]
    heads: int
    rope: str
    rope_at: str
    reads_latent: bool

    def keys(self, hidden: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
        """[B, t, C] -> [B, 1, t, d]."""
        key = linear(hidden.float(), self.tensors["wk"])
        key = layer_norm(
            key, key.shape[-1:], self.tensors["norm"], self.tensors["norm_bias"], eps=1e-6
        )
        return self.rotate(key[:, None], rope)

    def queries(self, source: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
        """[B, t, R] -> [B, H, t, d]."""
        q = linear(source.float(), self.tensors["wq"]).unflatten(-1, (self.heads, -1))
        return self.rotate(q.transpose(1, 2), rope)

    def gates(self, hidden: Tensor) -> Tensor:
        """[B, t, C] -> [B, t, H]; they may be negative."""
        return linear(hidden.float(), self.tensors["gates"])

    def rotate(self, x: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
        """Turn the first (or last) dims of x [B, H, t, d] by cos, sin [B, t, r]; the rest stay."""
        cos, sin = (angle[:, None].float() for angle in rope)
        width, rest = cos.shape[-1], x.shape[-1] - cos.shape[-1]
        if rest < 0:
            raise InputError(f"index heads of {x.shape[-1]} dims cannot take RoPE over {width}")
        turned, still = (
            x.split([width, rest], -1)
            if self.rope_at == "first"
            else x.split([rest, width], -1)[::-1]
        )
        if self.rope == "interleaved":
            turned = torch.cat([turned[..., 0::2], turned[..., 1::2]], -1)
        a, b = turned.chunk(2, -1)
        turned = turned * cos + torch.cat([-b, a], -1) * sin
        return torch.cat([turned, still] if self.rope_at == "first" else [still, turned], -1)


@dataclass(frozen=True)
class Weights:
    """A file of index weights: `{layer}.{wq,wk,norm,norm_bias,gates}` and how to read them.

    Its metadata name, under `model`, the digests of the model that it is for; without it, any.
    """

    path: Path
    metadata: dict[str, str]
    tensors: dict[str, Tensor]

    @property
    def reads_latent(self) -> bool:
        return self.metadata["reads"] == "latent"

    @property
    def models(self) -> frozenset[str]:
        return frozenset(self.metadata.get("model", "").split())

    def widths(self) -> dict[str, int]:
        """How wide the hidden states, and what queries are made from, must be."""
        first = self.layer(min(self.layers))
        source = "latent" if self.reads_latent else "hidden"
        return {
            "hidden": first.tensors["gates"].shape[1],
            source: first.tensors["wq"].shape[1],
        }

    @property
    def heads(self) -> int:
        """Index heads."""
        return int(self.metadata["heads"])

    @property
    def width(self) -> int:
        """Numbers of an index key."""
        return self.layer(min(self.layers)).tensors["wk"].shape[0]

    @property
    def layers(self) -> list[int]:
        return sorted({int(name.split(".")[0]) for name in self.tensors})

    def layer(self, layer: int) -> LayerWeights:
        names = {n.split(".", 1)[1]: n for n in self.tensors if n.startswith(f"{layer}.")}
        if not names:
            raise InputError(
                f"{self.path.name} has no index weights for layer {layer}; it has {self.layers}"
            )
        return LayerWeights(
            {short: self.tensors[n] for short, n in names.items()},
            heads=self.heads,
            rope=self.metadata["rope"],
            rope_at=self.metadata["rope_at"],
            reads_latent=self.reads_latent,
        )


def load(weights: str, device: torch.device | str = "cpu") -> Weights:
    """Read the file at a path, or a bundled one of that name, once a device.

    Raises: InputError when there is none, when it is no such file, or when its contents are not
    those that the hash in its name promises.
    """
    path = path_of("lightning", weights)
    return _read(path.resolve(), state_of(path), str(device))


@lasting(16)
def _read(path: Path, _state: State, device: str) -> Weights:
    metadata, tensors = read_tensors(path, "lightning", REMEDY, device)
    tensors = decoded(path, tensors)
    require(path, metadata, tensors)
    return Weights(path, metadata, tensors)
