# pyright: strict
"""The contract: an Indexer (recipe) builds an Index (state), which selects keys at a Step."""

from __future__ import annotations

import copy
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor

from topkit.errors import InputError
from topkit.grammar import Named, Registry
from topkit.indexers.candidates import Candidates
from topkit.indexers.stated_cost import Cost, Shape
from topkit.indexers.traits import FLAGS, Traits, adopt_class_flags, hold_to_traits
from topkit.kernels.gather_attention import PLAIN, Softmax

# What a driver may hand to a recipe that declares it in `needs`.
INPUTS = frozenset(
    {
        "cache",
        "hidden",
        "latent",
        "rope",
        "values",
        "prefill_queries",
        "upstream",
        "sample",
        "native",
        "index_queries",
        "index_keys",
        "index_weights",
    }
)


@dataclass(frozen=True)
class Cache:
    """The keys and values that attention reads, by reference: they cost bytes read, never nbytes.

    Shapes: keys [B, Hk, T, D]; values [B, Hk, T, Dv].
    """

    keys: Tensor
    values: Tensor | None = None

    @property
    def length(self) -> int:
        return self.keys.shape[2]

    @property
    def heads(self) -> int:
        return self.keys.shape[1]

    @property
    def value_width(self) -> int | None:
        """Numbers of a value; None where there are none."""
        return None if self.values is None else self.values.shape[3]

    @property
    def key_bytes(self) -> int:
        """Bytes of one token's keys, over all KV heads."""
        return self.heads * self.keys.shape[3] * self.keys.element_size()

    def since(self, slot: int) -> Tensor:
        """The keys of the slots from `slot` on."""
        return self.keys[:, :, slot:]

    def until(self, stop: int) -> Cache:
        """The slots before `stop`."""
        values = self.values
        return Cache(self.keys[:, :, :stop], None if values is None else values[:, :, :stop])


@dataclass(frozen=True)
class Step:
    """What the driver knows at a call, and the inputs that the recipe declared.

    Shapes: start [B], the first real slot of each row (left padding; None: 0); stop [B or 1, Tq],
    query i sees the slots start <= s < stop[i] (None: the queries are the last Tq slots); at [1], the
    slot of the one key that is appended, on its device (None: behind the index's slots; see `Traits.fixed`);
    `room`, how many slots the cache then has, most of all behind `stop` (None: as many as the index).
    backend is the kernels' ("auto", "torch", "triton"); `ordered` asks for the best first, which
    attention itself does not need. `memo` keeps what was computed of these very queries and keys, by
    name, for every recipe, budget and judge that comes to the same place (None: nothing is kept). A seed [] on
    the device is read anew by each repetition of a step of fixed shapes, which says what it costs if that is
    `counted`. `softmax`: the sinks and the softcap of the model's.
    Raises: InputError when an input is read that was not declared, or that the driver lacks.
    """

    layer: int = 0
    scaling: float = 1.0
    seed: int | Tensor = 0
    start: Tensor | None = None
    stop: Tensor | None = None
    at: Tensor | None = None
    kv_heads: int = 1
    backend: str = "auto"
    ordered: bool = True
    inputs: Mapping[str, Any] = field(default_factory=dict[str, Any])
    reader: Indexer | None = None
    memo: dict[str, Tensor] | None = None
    room: int | None = None
    counted: bool = True
    softmax: Softmax = PLAIN

    def __post_init__(self) -> None:
        unknown = set(self.inputs) - INPUTS
        if unknown:
            raise InputError(f"a step has no input {sorted(unknown)}; known: {sorted(INPUTS)}")

    def given_to(self, indexer: Indexer) -> Step:
        """This step as `indexer` may see it: only its declared inputs.

        A recipe inside another selects in order, as its selection may be cut.
        """
        needs = indexer.needs
        seen = {name: x for name, x in self.inputs.items() if name in needs}
        ordered = self.ordered or self.reader is not None
        return replace(self, inputs=seen, reader=indexer, ordered=ordered)

    def once(self, name: str, compute: Callable[[], Tensor]) -> Tensor:
        """What `compute` gives, computed once for every caller at this place; not to be written to."""
        if self.memo is None:
            return compute()
        if name not in self.memo:
            self.memo[name] = compute()
        return self.memo[name]

    @property
    def checks(self) -> bool:
        """Whether numbers are looked at, which waits for the GPU; at a step of fixed shapes nothing may."""
        return self.backend != "triton" and self.at is None

    def capped(self, scores: Tensor) -> Tensor:
        """Scores whose scaled ones are the logits of the keys: what is computed of keys, unless a softcap changes it."""
        return self.softmax.capped_scores(scores, self.scaling)

    def weights(self, scores: Tensor) -> Tensor:
        """The attention weights of keys by their scores [B, Hq, ..., n], beside what a sink takes.

        Where all are -inf they are NaN, or 0 beside a sink.
        """
        return self.softmax.weights_of_seen(self.scaling * self.capped(scores))

    def has(self, name: str) -> bool:
        return self.inputs.get(name) is not None

    def input(self, name: str) -> Any:
        if self.inputs.get(name) is not None:
            return self.inputs[name]
        if self.reader is not None and name not in self.reader.needs:
            raise InputError(f"{self.reader} read {name!r}, which its `needs` does not declare")
        raise InputError(f"{self.reader or 'the indexer'} needs {name!r}; this driver has none")

    @property
    def cache(self) -> Cache:
        return self.input("cache")

    @property
    def hidden(self) -> Tensor:
        """Hidden states of the tokens of this call [B, t, C]."""
        return self.input("hidden")

    @property
    def latent(self) -> Tensor:
        """Query latent of the tokens of this call [B, t, R] (MLA)."""
        return self.input("latent")

    @property
    def rope(self) -> tuple[Tensor, Tensor]:
        """cos and sin of the tokens of this call [B, t, R]."""
        return self.input("rope")

    @property
    def values(self) -> Tensor:
        """Values of the keys of this call [B, Hk, t, Dv]."""
        return self.input("values")

    @property
    def prefill_queries(self) -> Tensor:
        """Queries of the last n tokens that an index is built on [B, Hq, n, D], n = 64 or more; at build alone.

        Fewer where there are fewer tokens, or a capture holds fewer.
        """
        return self.input("prefill_queries")

    @property
    def sample(self) -> int:
        """Which sample of a capture it is; at build alone, and in `measure` alone."""
        return self.input("sample")

    @property
    def upstream(self) -> Selection:
        """What these queries selected in the layer `Indexer.upstream_layer`; at select alone.

        Slots, and weights if there are any, without costs and rest; of the whole recipe where one is
        inside another.
        """
        return self.input("upstream")

    @property
    def native(self) -> Tensor:
        """The slots that the model's own indexer lists for these queries [B, Tq, n]; at select alone.

        Best first; behind those that a query sees may stand others, and -1.
        """
        return self.input("native")

    def stops(self, length: int, count: int, device: torch.device | None = None) -> Tensor:
        """One past the last visible slot of each query [B or 1, count]."""
        if self.stop is not None:
            return self.stop
        return torch.arange(length - count + 1, length + 1, device=device)[None]

    def starts(self, device: torch.device | None = None) -> Tensor:
        """The first real slot of each row [B or 1]."""
        if self.start is not None:
            return self.start
        return torch.zeros(1, dtype=torch.long, device=device)

    def slots(self, length: int) -> int:
        """How many slots there are to choose among: `length`, or all room at a step of fixed shapes."""
        return length if self.room is None else self.room

    def visible(self, length: int, count: int, device: torch.device | None = None) -> Tensor | None:
        """Which slots each query sees [B or 1, 1, count, length]; None where that is all of them."""
        if self.start is None and self.stop is None and count == 1:
            return None
        slots = torch.arange(length, device=device)
        stops = self.stops(length, count, device)[:, None, :, None]
        before = slots < stops
        return before if self.start is None else before & (slots >= self.start[:, None, None, None])

    def seen(self, length: int, count: int, device: torch.device | None = None) -> Tensor:
        """How many slots each query sees [B or 1, count]."""

        def compute() -> Tensor:
            stops = self.stops(length, count, device).clamp_max(length)
            return stops if self.start is None else (stops - self.start[:, None]).clamp_min(0)

        return self.once(seen_of(length), compute)


def seen_of(length: int) -> str:
    """What a step's memo calls how many of so many slots each query sees."""
    return f"seen of {length} slots"


@dataclass(frozen=True)
class Rest:
    """Pseudo-keys that stand for the keys that were not selected.

    Shapes: values [B, Hq, Tq, r, Dv]; either logits [B, Hq, Tq, r], already scaled and capped, which
    join the softmax (centroid estimates), or share [B, Hq, Tq, r], each one's part of the output
    (SparQ's mean value, arXiv 2312.04985 section 3).
    """

    values: Tensor
    logits: Tensor | None = None
    share: Tensor | None = None


@dataclass(frozen=True)
class Selection:
    """Which keys each query keeps, best first unless the step's `ordered` is false.

    Shapes: indices [B, Hs, Tq, k] int64, Hs in {Hq, Hk, 1}, query head h reads row h // (Hq / Hs),
    -1 last where fewer than k were chosen; log_weights as indices, added to the scaled scores
    before softmax (0 at -1).
    Units: keys_scored, keys whose score was computed, a query and selecting head; bytes_read, bytes
    that choosing read, a query over all heads of the layer. Numbers, or tensors [B or 1, Tq].
    """

    indices: Tensor
    log_weights: Tensor | None = None
    rest: Rest | None = None
    keys_scored: Tensor | float = 0
    bytes_read: Tensor | float = 0

    def cut(self, k: int) -> Selection:
        """The first k of each list, at the same cost."""
        weights = self.log_weights
        return replace(
            self,
            indices=self.indices[..., :k],
            log_weights=None if weights is None else weights[..., :k],
        )


class Index(ABC):
    """The state of one decoding stream of one layer, as its recipe built it."""

    @property
    @abstractmethod
    def length(self) -> int:
        """Slots of the index, padding included."""

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """Bytes that the index holds: each storage once, views of the cache excluded."""

    @abstractmethod
    def append(self, keys: Tensor, step: Step) -> None:
        """Add keys [B, Hk, t, D] behind the last slot."""

    @abstractmethod
    def select(self, queries: Tensor, k: int, step: Step) -> Selection:
        """Choose at most k keys for each of queries [B, Hq, Tq, D]."""

    def select_many(self, queries: Tensor, ks: Sequence[int], step: Step) -> dict[int, Selection]:
        """What `select` chooses at each of several budgets; families score once for all of them."""
        return {k: self.select(queries, k, step) for k in ks}

    @abstractmethod
    def truncate(self, length: int, step: Step) -> None:
        """Forget all slots from `length` on (rejected drafts)."""

    @abstractmethod
    def reorder(self, rows: Tensor) -> None:
        """Let row i become what row rows[i] was: a gather, which may change B (beams)."""

    def fork(self) -> Index:
        """An independent copy; correct as it is for an index that never writes into its tensors."""
        return copy.copy(self)

    def read_as(self, recipe: Indexer) -> Index:
        """An independent copy that is searched as `recipe` says, which `builds_as` the recipe of this one."""
        twin: Any = self.fork()
        twin.recipe = recipe
        return twin

    def room(self) -> Mapping[str, Tensor] | None:
        """Buffers of the slots with room for one more, None without; of `fixed` recipes."""
        return None

    def candidates(self, queries: Tensor, k: int, step: Step) -> Candidates | None:
        """What `select` takes the k best of at a step of fixed shapes; None where it does not go by score."""
        return None

    def visible_scores(self, queries: Tensor, step: Step) -> Tensor:
        """`score` of all room [B, Hs, 1, room] at a step of fixed shapes, -inf where it is not seen."""
        raise InputError(f"{type(self).__name__} does not score every key")

    def reveal(self, length: int) -> None:
        """Show the slots before `length`, which steps wrote at their `at`."""
        raise InputError(f"{type(self).__name__} takes no key at a place on the device")

    def score(self, queries: Tensor, step: Step) -> Tensor:
        """Approximate scores of all keys [B, Hs, Tq, T]; recipes that `score_all` have them."""
        raise InputError(f"{type(self).__name__} does not score every key")

    def bytes_per_key(self, step: Step) -> float:
        """Bytes that `score` reads for one key, over all heads of the layer."""
        raise InputError(f"{type(self).__name__} does not score every key")


class Indexer(Named):
    """A recipe: a frozen dataclass of hyper-parameters, named by its repr.

    `traits` says how it departs from the common laws (topkit.contract holds them).
    """

    family: ClassVar[str] = "other"
    source: ClassVar[str] = ""
    cost: ClassVar[str] = ""
    # The optional package that it imports at use.
    requires: ClassVar[str] = ""
    # What to do where it was made for another model, of recipes that read a file.
    remedy: ClassVar[str] = "give one that was made for this model"
    # The values of parameters that a budget of bytes may choose among, by name: what it reads depends on them.
    tuned: ClassVar[Mapping[str, Sequence[Any]]] = {}
    # Specs that the contract suite tries beside the defaults, or for want of them.
    examples: ClassVar[tuple[str, ...]] = ()

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        hold_to_traits(cls)
        adopt_class_flags(cls, Indexer)

    def __getattr__(self, name: str) -> Any:
        # As recipes of 0.1 read the flags of another; a class that has a flag said it itself.
        if name not in FLAGS or hasattr(type(self), name):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        warnings.warn(f"recipe.{name} is now recipe.traits().{name}", FutureWarning, stacklevel=2)
        return getattr(self.traits(), name)

    @classmethod
    def registry(cls) -> Registry[Any]:
        from topkit.indexers import REGISTRY

        return REGISTRY

    def traits(self) -> Traits:
        """The inputs that it reads, and how it departs from the common laws."""
        return Traits()

    @cached_property  # read at every call of an index
    def needs(self) -> frozenset[str]:
        """The inputs that it reads: what its traits say, unless the class says so itself."""
        return self.traits().needs

    def costs(self, shape: Shape) -> Cost:
        """What it costs in a layer that selects, by formulas, which `topkit list indexers --json` prints.

        Raises: InputError where it states none.
        """
        raise InputError(f"{self} does not state what it costs: {self.cost or 'it has no `costs`'}")

    def widths(self) -> Mapping[str, int]:
        """The sizes that this recipe fixes, by name: head_dim, hidden, latent, rope."""
        return {}

    def models(self) -> frozenset[str]:
        """The digests of the one model that it is made for, as it may be loaded; none: it serves any."""
        return frozenset()

    def remembered_from(self, steps: int) -> int:
        """Of the first so many steps of a stream, a key and a choice each, the first that later choices depend on.

        Of recipes that remember.
        """
        return 0

    def upstream_layer(self, layer: int) -> int | None:
        """The earlier layer whose Selection it reads at a layer as `upstream`; None: it reads none there."""
        return None

    def builds_as(self) -> Indexer:
        """The recipe whose index serves this one too, `read_as` this one: itself, unless they differ in the search alone.

        A subclass whose `build` reads the parameters of the search, too, returns itself.
        """
        return self

    def build(self, keys: Tensor, step: Step) -> Index:
        """An Index of keys [B, Hk, T, D], as attention sees them, after RoPE."""
        raise InputError(f"{type(self).__name__} does not say how to build its index")
