"""DeepSeek's Lightning Indexer: a small attention of its own, one selection for a whole layer."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.nn.functional import layer_norm, linear

from topkit.errors import InputError
from topkit.indexers.base import Step
from topkit.indexers.lightning_file import require
from topkit.indexers.scored import Codes, Scored
from topkit.indexers.stated_cost import Cost, Shape
from topkit.indexers.traits import Traits
from topkit.kernels.codes import factors
from topkit.kernels.quantize_append import quantize_append
from topkit.kernels.score import score_lightning
from topkit.kernels.score_select import score_select_lightning

_BUNDLED = Path(__file__).parents[1] / "data" / "lightning"
GIVEN = "given"


@dataclass(frozen=True)
class lightning(Scored):
    """Scores a key by the weighted sum over index heads of ReLU(q . k), one shared key a token.

    `weights` is a safetensors file (topkit.experiments.train.lightning writes one from a model or trains
    one) or the name of a bundled one; "given" projects nothing and reads index_queries, index_keys
    and index_weights, unrotated, as the model itself computed them. dtype
    "fp8" rotates by Hadamard and stores e4m3 with one power-of-two scale a vector, as DeepSeek's
    inference code does; "fp32" scores plainly.
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
        return () if self.weights == GIVEN else (_path_of(self.weights),)

    def __post_init__(self) -> None:
        if self.dtype not in ("fp32", "fp8"):
            raise InputError(f"lightning: dtype must be fp32 or fp8; got {self.dtype!r}")
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
        return self._stored(self._keys(keys, step), step)

    def write(self, keys: Tensor, codes: Codes, at: int | Tensor, step: Step) -> None:
        if self.dtype == "fp32":
            super().write(keys, codes, at, step)
        else:
            _put(self._keys(keys, step), codes, at, step)

    def score(self, queries: Tensor, codes: Codes, step: Step) -> Tensor:
        vectors, gates, scales = self._queries(queries, codes, step)
        return score_lightning(vectors, codes["vectors"], gates, **scales, backend=step.backend)

    def pick(
        self, queries: Tensor, codes: Codes, k: int, step: Step, pool: str | None = None
    ) -> Tensor:
        if self.dtype == "fp32" and step.backend == "triton":
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
        stored = self._stored(vectors, step)
        scales = {"query_scale": stored.get("scale"), "key_scale": codes.get("scale")}
        return stored["vectors"], gates, scales

    def asked(self, queries: Tensor, step: Step) -> tuple[Tensor, Tensor]:
        """Index queries [B, H, t, d] of the tokens of a call, as they are stored, and gates [B, t, H]."""
        vectors, gates, scales = self._queries(queries, {}, step)
        return _decoded(vectors, scales["query_scale"]), gates

    def vectors_of(self, codes: Codes) -> Tensor:
        """The index keys that codes stand for, in float32; of "fp8" rotated, as queries are."""
        return _decoded(codes["vectors"], codes.get("scale"))

    def _stored(self, vectors: Tensor, step: Step) -> Codes:
        if self.dtype == "fp32":
            return {"vectors": vectors}
        codes = {
            "vectors": vectors.new_empty(vectors.shape, dtype=torch.float8_e4m3fn),
            "scale": vectors.new_empty(*vectors.shape[:-1], 1),
        }
        _put(vectors, codes, 0, step)
        return codes


def _put(vectors: Tensor, codes: Codes, at: int | Tensor, step: Step) -> None:
    """Write float32 vectors as e4m3 at the slots from `at` on, as DeepSeek's inference code does."""
    quantize_append(
        vectors.detach(), codes["vectors"], codes["scale"], at,
        dtype="fp8_e4m3", hadamard=True, pow2=True, backend=step.backend,
    )  # fmt: skip


def _decoded(vectors: Tensor, scale: Tensor | None) -> Tensor:
    return vectors.float() if scale is None else vectors.float() * factors(scale)


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
    path = _path_of(weights)
    stat = path.stat()
    # A file that another took the place of has another inode, however soon that was.
    return _read_file(path.resolve(), (stat.st_mtime_ns, stat.st_size, stat.st_ino), str(device))


def _path_of(weights: str) -> Path:
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
