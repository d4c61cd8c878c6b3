# pyright: strict
"""The streams that laws are tried on: random ones, or the user's own tokens, in the user's shapes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor

from topkit.contract.streams import Stream
from topkit.errors import InputError
from topkit.indexers.base import Indexer
from topkit.kernels import checks

PADDED = (0, 5, 36)  # the last row shows one key, and none to the queries before it
WIDTHS = {"head_dim": 16, "hidden": 24, "latent": 12, "rope": 8}
# Tensors of the user's own, by their number of dimensions: [B, T, width] or [B, heads, T, width].
TOKENS = ("hidden", "latent", "cos", "sin", "index_weights")
VECTORS = ("queries", "keys", "values", "prefill_queries", "index_queries", "index_keys")
Inputs = Mapping[str, Tensor | tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Draw:
    """A way to draw streams: with given heads, widths and tokens, or any.

    Shapes: own, by name, [N, width] or [N, heads, width], a token of the user's own each.
    """

    heads: tuple[int, int] | None = None
    widths: Mapping[str, int] = field(default_factory=dict[str, int])
    layer: int = 0
    own: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])

    def __call__(
        self,
        indexer: Indexer,
        *,
        length: int = 37,
        rows: int = 2,
        heads: tuple[int, int] = (4, 2),
        start: Sequence[int] | None = None,
        whole: bool = False,
        seed: int = 0,
    ) -> Stream:
        """A stream of the widths that `indexer` asks for; whole numbers, for ties, on request."""
        fixed = indexer.widths()
        width = {**WIDTHS, **fixed, **self.widths}
        if "heads" in fixed:
            heads = fixed["heads"], fixed["kv_heads"]
        generator = torch.Generator().manual_seed(seed)
        heads, rows = self.heads or heads, len(start) if start is not None else rows

        def draw(*shape: int) -> Tensor:
            if whole:
                return torch.randint(-2, 3, shape, generator=generator).float()
            return torch.randn(*shape, generator=generator)

        queries, keys, values = (
            draw(rows, count, length, width["head_dim"]) for count in (*heads, heads[1])
        )
        tokens = {name: draw(rows, length, width[name]) for name in ("hidden", "latent", "rope")}
        angles = tokens.pop("rope")
        tokens |= {"cos": angles.cos(), "sin": angles.sin()}
        vectors = {"queries": queries, "keys": keys, "values": values}
        for name, mine in self._own(rows * length, generator, whole).items():
            by_row = mine.reshape(rows, length, *mine.shape[1:])
            if name in VECTORS:
                vectors[name] = by_row.transpose(1, 2)
            else:
                tokens[name] = by_row
        queries, keys, values = (vectors.pop(name) for name in ("queries", "keys", "values"))
        return Stream(
            queries=queries,
            keys=keys,
            values=values,
            tokens={"index_weights": queries.mean(-1).mT, **tokens},
            vectors={
                "prefill_queries": queries,
                "index_queries": queries,
                "index_keys": keys[:, :1],
                **vectors,
            },
            start=None if start is None else torch.tensor(start),
            kv_heads=keys.shape[1],
            layer=self.layer,
            seed=seed,
        )

    def _own(self, count: int, generator: torch.Generator, whole: bool) -> dict[str, Tensor]:
        """Random tokens of the user's own, the same ones of every tensor; rounded, for ties, on request."""
        if not self.own:
            return {}
        there = len(next(iter(self.own.values())))
        order = torch.cat(
            [torch.randperm(there, generator=generator) for _ in range(-(-count // there))]
        )
        drawn = {name: x[order[:count]] for name, x in self.own.items()}
        if whole:
            drawn = {name: (x / x.std().clamp_min(1e-30)).round() for name, x in drawn.items()}
        return drawn


RANDOM = Draw()


def draw_of(
    indexer: Indexer,
    heads: tuple[int, int] | None,
    widths: Mapping[str, int] | None,
    layer: int,
    inputs: Inputs | None,
) -> Draw:
    """A draw of the user's own shapes and tensors.

    Raises: InputError for what is not there, and shapes that do not fit one another or the recipe.
    """
    said: dict[str, object] = {"inputs": inputs, "widths": widths}
    for name, x in said.items():
        if x is not None and not isinstance(x, Mapping):
            raise InputError(f"{name} must be a mapping, by name; got {type(x).__name__}")
    own = _tokens(inputs or {})
    heads = None if heads is None else _heads(heads)
    if "queries" in own:
        theirs = _heads((own["queries"].shape[1], own["keys"].shape[1]))
        if heads not in (None, theirs):
            raise InputError(f"heads must be those of queries and keys, {theirs}; got {heads}")
        heads = theirs
        _require_alike(own)
    widths = {name: checks.at_least_one(name, size) for name, size in (widths or {}).items()}
    for name, x in own.items():
        width = "head_dim" if name in ("queries", "keys") else name
        if width in WIDTHS and widths.setdefault(width, x.shape[-1]) != x.shape[-1]:
            raise InputError(f"{width} is {widths[width]}; got {name} of {x.shape[-1]} dimensions")
    for name, size in widths.items():
        checks.one_of("a width", name, WIDTHS)
        fixed = indexer.widths().get(name, size)
        if fixed != size:
            raise InputError(f"{name} of {indexer} is {fixed}; got {size}")
    layer = checks.whole("layer", layer)
    if layer < 0:
        raise InputError(f"layer must be 0 or more; got {layer}")
    return Draw(heads, widths, layer, own)


def _heads(heads: object) -> tuple[int, int]:
    if not isinstance(heads, tuple | list) or len(cast(Sequence[object], heads)) != 2:
        raise InputError(f"heads must be query and KV heads, as (64, 1); got {heads!r}")
    query, kv = (checks.at_least_one("heads", x) for x in cast(Sequence[object], heads))
    if query % kv:
        raise InputError(f"heads must be query heads, a multiple of KV heads; got {query} and {kv}")
    return query, kv


def _require_alike(own: Mapping[str, Tensor]) -> None:
    """Require what stands beside queries and keys to have their heads, and queries of the past their width."""
    for name, like, dims in (("values", "keys", 1), ("prefill_queries", "queries", 2)):
        if name in own and own[name].shape[1 : 1 + dims] != own[like].shape[1 : 1 + dims]:
            what = "heads" if dims == 1 else "heads and dimensions"
            raise InputError(
                f"{name} must have the {what} of {like}, {list(own[like].shape[1 : 1 + dims])}; "
                f"got {list(own[name].shape[1 : 1 + dims])}"
            )


def _tokens(inputs: Inputs) -> dict[str, Tensor]:
    """Own tensors token by token [B * T, ...], after a look at their shapes."""
    tensors: dict[str, Tensor] = {}
    for name, x in inputs.items():
        if name == "rope":
            pair = cast(Sequence[object], x if isinstance(x, tuple) else ())
            if [isinstance(part, Tensor) for part in pair] != [True, True]:
                raise InputError("rope must be a pair: cos and sin, [B, T, width] each")
            tensors |= {"cos": x[0], "sin": x[1]}
        elif isinstance(x, Tensor) and name in (*TOKENS, *VECTORS) and name not in ("cos", "sin"):
            tensors[name] = x
        else:
            known = ", ".join(sorted({*TOKENS, *VECTORS, "rope"} - {"cos", "sin"}))
            raise InputError(f"inputs must be tensors, of the names {known}; got {name!r}")
    attention = {"queries", "keys", "values", "prefill_queries"} & set(tensors)
    if attention and not {"queries", "keys"} <= attention:
        raise InputError(f"queries and keys must come together; got {', '.join(sorted(attention))}")
    places: dict[str, tuple[int, int]] = {}
    for name, x in tensors.items():
        checks.dims(name, x, 4 if name in VECTORS else 3)
        if x.shape[-1] == 0:
            raise InputError(f"{name} must have at least 1 dimension a token; got {tuple(x.shape)}")
        if not x.is_floating_point():
            raise InputError(f"{name} must be floating-point; got {x.dtype}")
        places[name] = (x.shape[0], x.shape[2 if name in VECTORS else 1])
    if len(set(places.values())) > 1 or 0 in next(iter(places.values()), (1, 1)):
        raise InputError(f"inputs must have one B and T; got {places}")
    return {
        name: (x.transpose(1, 2) if name in VECTORS else x).detach().cpu().float().flatten(0, 1)
        for name, x in tensors.items()
    }
