"""Projections of lightning indexers, read from files."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.nn.functional import layer_norm, linear

from topkit.errors import InputError
from topkit.indexers.lightning_file import require

_BUNDLED = Path(__file__).parents[1] / "data" / "lightning"


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
    """Read a weights file once a device.

    Raises: InputError when there is none, when it is no such file, or when its contents are not
    those that the hash in its name promises.
    """
    path = path_of(weights)
    stat = path.stat()
    # A file that another took the place of has another inode, however soon that was.
    return _read_file(path.resolve(), (stat.st_mtime_ns, stat.st_size, stat.st_ino), str(device))


def path_of(weights: str) -> Path:
    """The bundled file of a name, else the file at a path; a file called `reference` is `./reference`.

    Raises: InputError when there is neither.
    """
    named = re.fullmatch(r"[\w.-]+", weights)  # a path is no pattern
    bundled = sorted(_BUNDLED.glob(f"{weights}-*.safetensors")) if named else []
    path = bundled[0] if bundled else Path(weights)
    try:
        if path.is_file():
            return path
    except (OSError, ValueError):  # longer than a path may be, or with a NUL
        pass
    shown = weights if len(weights) <= 200 else f"{weights[:40]}..."
    raise InputError(f"lightning: no weights at {shown!r}; give a file or a bundled name")


@lru_cache(maxsize=16)
def _read_file(path: Path, _changed: tuple[int, int, int], device: str) -> Weights:
    promised = re.search(r"-([0-9a-f]{12})\.safetensors$", path.name)
    if promised and hashlib.sha256(path.read_bytes()).hexdigest()[:12] != promised[1]:
        raise InputError(f"{path} is altered: its contents do not hash to {promised[1]}")
    try:
        with safe_open(path, "pt", device=device) as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name).float() for name in file.keys()}
    except (SafetensorError, OSError, RuntimeError, LookupError, TypeError) as error:
        raise InputError(f"cannot read {path} as safetensors: {error}; give another") from error
    require(path, metadata, tensors)
    return Weights(path, metadata, tensors)
