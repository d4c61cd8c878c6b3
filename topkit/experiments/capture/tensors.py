"""What the attention of one layer saw over one sample: the value that captures are made of."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from topkit.documents import quote
from topkit.errors import InputError
from topkit.experiments.capture import files
from topkit.experiments.model.finite import require_finite
from topkit.kernels.gather_attention import Softmax

if TYPE_CHECKING:
    from topkit.experiments.model.record import LayerRecord

# The dimensions of every tensor; those of one name agree. Also the names inside the files.
SHAPES = {
    "queries": "1 Hq Tq D",
    "keys": "1 Hk T D",
    "values": "1 Hk T Dv",
    "positions": "Tq",
    "scaling": "",
    "hidden": "1 T C",
    "latent": "1 T R",
    "rope_cos": "1 T P",
    "rope_sin": "1 T P",
    "index_queries": "1 Hi Tq Di",
    "index_keys": "1 1 T Di",
    "index_weights": "1 Tq Hi",
    "prefill_queries": "1 Hq Tp D",
    "native": "1 Tq K",
    "sinks": "Hq",
    "softcap": "",
}
# What only a model tells, and no call of attention takes.
OF_MODELS = frozenset({"sinks", "softcap"})
# What attention is computed from; and a learned indexer's scores, which are enough by themselves.
OF_ATTENTION = frozenset({"queries", "keys", "scaling"})
OF_INDEX = frozenset({"index_queries", "index_keys", "index_weights"})
_FLOATS = (torch.float32, torch.float16, torch.bfloat16)
_DTYPES = {
    "positions": ((torch.int64,), "int64"),
    "scaling": (files.FLOATS, "a float"),
    "native": ((torch.int32,), "int32"),
    "softcap": (files.FLOATS, "a float"),
}


@dataclass(frozen=True)
class LayerTensors:
    """What attention saw in one layer over one sample, after RoPE, KV heads not repeated.

    Shapes: queries [1, Hq, Tq, D], keys [1, Hk, T, D], values [1, Hk, T, Dv]; positions int64 [Tq],
    the slot of each query's own token, which sees the slots 0..position; hidden [1, T, C], latent
    [1, T, R] (of MLA's queries) and rope (cos, sin) [1, T, P] of every token; index_queries
    [1, Hi, Tq, Di], index_keys [1, 1, T, Di] and index_weights [1, Tq, Hi] of a learned indexer;
    prefill_queries [1, Hq, Tp, D] of the last Tp tokens before the first position; native [1, Tq, K] the
    slots that the model's own indexer let each query attend to, best first, then -1;
    sinks [Hq], the logit of no key that each query head has, and softcap, where the model's softmax has them.
    index_only: there is nothing but a learned indexer; its keys stand as keys, its first head as queries, at a
    scaling of 1, so that shapes and slots are there for those who ask.
    Raises: InputError when shapes do not fit each other.
    """

    sample: int
    layer: int
    queries: Tensor
    keys: Tensor
    values: Tensor | None
    positions: Tensor
    scaling: float
    hidden: Tensor | None = None
    latent: Tensor | None = None
    rope: tuple[Tensor, Tensor] | None = None
    index_queries: Tensor | None = None
    index_keys: Tensor | None = None
    index_weights: Tensor | None = None
    prefill_queries: Tensor | None = None
    native: Tensor | None = None
    sinks: Tensor | None = None
    softcap: float | None = None
    index_only: bool = False

    def __post_init__(self) -> None:
        tensors = self.tensors()
        _check_shapes(tensors, self._where)
        heads, kv_heads = self.queries.shape[1], self.keys.shape[1]
        if heads % kv_heads:
            raise InputError(
                f"{self._where}: {heads} query heads cannot share {kv_heads} KV heads; "
                "the first must be a multiple of the second"
            )
        at, length = self.positions, self.keys.shape[2]
        early = 0 if self.prefill_queries is None else self.prefill_queries.shape[2]
        if at.min() < 0 or at.max() >= length or (at.diff() <= 0).any():
            raise InputError(
                f"{self._where}: positions must ascend within the {length} keys; got {at.tolist()}"
            )
        if early > int(at[0]):
            raise InputError(
                f"{self._where}: prefill_queries are of the tokens before position {int(at[0])}, the "
                f"first; got {early}"
            )
        if not (math.isfinite(self.scaling) and self.scaling > 0):
            raise InputError(f"{self._where}: scaling must be positive; got {self.scaling}")
        if self.softcap is not None and not (math.isfinite(self.softcap) and self.softcap > 0):
            raise InputError(f"{self._where}: softcap must be positive; got {self.softcap}")

    @property
    def softmax(self) -> Softmax:
        """What the model does between scaled scores and weights."""
        return Softmax(self.sinks, self.softcap)

    @property
    def _where(self) -> str:
        return f"sample {self.sample}, layer {self.layer}"

    def tensors(self) -> dict[str, Tensor]:
        """All of it by the names used in files."""
        cos, sin = self.rope or (None, None)
        stand_in = OF_ATTENTION if self.index_only else frozenset()
        named = {name: getattr(self, name, None) for name in SHAPES if name not in stand_in}
        named |= {"rope_cos": cos, "rope_sin": sin}
        for name in ("scaling", "softcap"):
            number = None if name in stand_in else getattr(self, name)
            named[name] = None if number is None else torch.tensor(number, dtype=torch.float64)
        return {name: x for name, x in named.items() if x is not None}

    @classmethod
    def of(
        cls, record: LayerRecord, sample: int, layer: int, positions: Tensor, prefill: int = 0
    ) -> LayerTensors:
        """What is kept of a call of the attention function, on the CPU; its first `prefill` queries apart."""
        queries, native, sinks = record.queries.cpu(), None, record.softmax.sinks
        if record.chosen is not None:
            slots = record.chosen[:, prefill:].cpu().int()
            # An early query has more places than keys, and those behind them filled.
            native = slots.where(slots <= positions[:, None], -1).contiguous()
        return cls(
            sample,
            layer,
            queries[:, :, prefill:].contiguous(),
            record.keys.cpu(),
            record.values.cpu(),
            positions,
            record.scaling,
            None if record.hidden is None else record.hidden.cpu(),
            None if record.latent is None else record.latent.cpu(),
            None if record.rope is None else (record.rope[0].cpu(), record.rope[1].cpu()),
            prefill_queries=queries[:, :, :prefill].contiguous() if prefill else None,
            native=native,
            sinks=None if sinks is None else sinks.cpu(),
            softcap=record.softmax.softcap,
        )

    @classmethod
    def from_tensors(cls, sample: int, layer: int, tensors: Mapping[str, Tensor]) -> LayerTensors:
        """The inverse of `tensors`. Raises: InputError also for names that lack or are unknown."""
        _check_names(set(tensors))
        numbers = {name: tensors[name] for name in ("scaling", "softcap") if name in tensors}
        for name, x in numbers.items():
            if x.ndim or not x.is_floating_point():
                raise InputError(
                    f"{name} must be one number; got {x.dtype} of shape {list(x.shape)}"
                )
        fields: dict[str, Any] = {"values": None, **tensors}
        if not OF_ATTENTION & set(tensors):
            first, keys = tensors["index_queries"][:, :1], tensors["index_keys"]
            fields |= {"queries": first, "keys": keys, "scaling": 1.0, "index_only": True}
        rope = (fields.pop("rope_cos", None), fields.pop("rope_sin", None))
        fields |= {name: float(x) for name, x in numbers.items()}
        return cls(sample, layer, **fields, rope=None if rope[0] is None else rope)

    def require_finite(self) -> None:
        """Raises: InputError naming sample, layer and head of the first NaN or infinity."""
        require_finite(self._where, self.tensors())

    def require_attention(self, what: str) -> None:
        """Raises: InputError where there is nothing but a learned indexer, for `what` reads attention's tensors."""
        if self.index_only:
            raise InputError(
                f"{what} reads the queries and keys of attention, and the capture holds a learned indexer's "
                "tensors alone; give queries and keys too"
            )


def _check_names(names: set[str]) -> None:
    needed = OF_ATTENTION if OF_ATTENTION & names else OF_INDEX
    lacking = {*needed, "positions"} - names
    unknown = names - set(SHAPES)
    if lacking or unknown:
        fault = f"lacks {', '.join(sorted(lacking))}" if lacking else f"holds {quote(min(unknown))}"
        raise InputError(f"a layer's tensors are {', '.join(SHAPES)}; it {fault}; capture again")
    if len({"rope_cos", "rope_sin"} & names) == 1:
        raise InputError("rope_cos and rope_sin come together; it holds one of them")


def _check_shapes(tensors: Mapping[str, Tensor], where: str) -> None:
    sizes: dict[str, tuple[int, str]] = {"1": (1, "its form")}
    for name, x in tensors.items():
        form = SHAPES[name].split()
        if x.ndim != len(form):
            raise InputError(f"{where}: {name} must be [{', '.join(form)}]; got {list(x.shape)}")
        for symbol, size in zip(form, x.shape, strict=True):
            known, source = sizes.setdefault(symbol, (size, name))
            if size != known or size == 0:
                wanted = f"{symbol} = {known} as in {source}" if known else f"{symbol} > 0"
                wanted = "1 where its form says so" if symbol == "1" else wanted
                raise InputError(
                    f"{where}: {name} [{', '.join(form)}] must have {wanted}; got {list(x.shape)}"
                )
        allowed, words = _DTYPES.get(name, (_FLOATS, "float32, float16 or bfloat16"))
        if x.dtype not in allowed:
            raise InputError(f"{where}: {name} is {x.dtype}; expected {words}")


def estimate_bytes(
    like: LayerTensors, keys: int, queries: int, prefill: int = 0, own_k: int | None = None
) -> int:
    """Bytes of one file of `keys` keys, `queries` query positions and `prefill` queries before, else as `like`.

    own_k: how many keys the model's own indexer lets a query attend to, at most.
    """
    lengths = {"T": keys, "Tq": queries, "Tp": prefill}
    if own_k is not None:
        lengths["K"] = min(own_k, keys)
    sized, tensors = {}, like.tensors()
    if prefill:
        tensors["prefill_queries"] = tensors["queries"]
    for name, x in tensors.items():
        form = zip(SHAPES[name].split(), x.shape, strict=True)
        shape = [lengths.get(symbol, size) for symbol, size in form]
        sized[name] = torch.empty(shape, dtype=x.dtype, device="meta")
    return files.file_bytes(sized)
