# pyright: strict
"""What a recipe says of itself: one frozen value."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, fields, replace
from functools import wraps
from typing import Any, cast

from topkit.errors import InputError


@dataclass(frozen=True)
class Traits:
    """The inputs that a recipe reads, and how it departs from the common laws (topkit.contract)."""

    # The inputs that drivers hand over; `Indexer.needs` gives them.
    needs: frozenset[str] = frozenset()
    # k >= visible returns every visible key.
    exhaustive: bool = True
    # Fewer than min(k, visible) keys may be chosen.
    may_come_short: bool = False
    # build(a) then append(b) may select otherwise than build(a ++ b).
    drifts: bool = False
    # Codes hold nothing of later keys, so that several queries may select at once.
    causal_codes: bool = True
    # Its index lies in the host's memory, and chooses there: drivers hand over all tensors on the CPU.
    host: bool = False
    # select changes later selections: never shared between runs.
    remembers: bool = False
    # A step with `at`, `stop` and `room` appends one key and selects with shapes and addresses that stay,
    # by what stands on the device alone, in the index's `room`: a CUDA graph can repeat it. Its inputs are
    # the cache, with its room, and `hidden`, `latent` and `rope` of the key's token, and `upstream` in evaluate.
    # What is written there shows from `Index.reveal` on, and until then may be written again.
    fixed: bool = False
    # Index.score gives a score for every key.
    score_all: bool = False
    # Selections carry log_weights: an estimate of attention, which no list may cut.
    weighted: bool = False
    # Selections carry a rest, pseudo-keys for what was not chosen: an estimate, too.
    rest: bool = False


FLAGS = tuple(field.name for field in fields(Traits) if field.name != "needs")


def as_written(recipe: object, kind: type[Any], *methods: str) -> bool:
    """Whether a recipe has these methods of `kind`, and not a subclass's own.

    What `kind` does besides at steps of fixed shapes, for them, is then the recipe's too.
    """
    return all(getattr(type(recipe), name) is getattr(kind, name) for name in methods)


def hold_to_traits(recipe: type[Any]) -> None:
    """Refuse, by the recipe's name, what its own `traits` returns that is no Traits; ask it once.

    A frozen recipe says the same at every step of a decoding.
    """
    own = vars(recipe).get("traits")
    if own is None:
        return

    @wraps(own)
    def traits(self: Any) -> Traits:
        state = cast("dict[str, dict[type[Any], Traits]]", self.__dict__)
        known = state.setdefault("_traits", {})
        if recipe in known:
            return known[recipe]
        said = own(self)
        if not isinstance(said, Traits):
            raise InputError(
                f"{recipe.__name__}.traits() must return a Traits, as "
                f"replace(super().traits(), drifts=True); got {type(said).__name__}"
            )
        return known.setdefault(recipe, said)

    recipe.traits = traits


def adopt_class_flags(recipe: type[Any], root: type[Any]) -> None:
    """Let `traits` of a recipe written for 0.1 say what its class variables and properties say.

    Mixins count, those that do not derive from `root` and stand before it; its parents did so themselves.
    """
    parents = [base for base in recipe.__bases__ if issubclass(base, root)]
    before = recipe.__mro__[: recipe.__mro__.index(root)]
    own = [c for c in before if not any(issubclass(base, c) for base in parents)]
    values = {
        name: next(vars(c)[name] for c in own if name in vars(c))
        for name in FLAGS
        if any(name in vars(c) for c in own)
    }
    if not values:
        return
    written = ", ".join(f"{n}={x if type(x) is bool else '...'}" for n, x in values.items())
    warnings.warn(
        f"{recipe.__name__} has class flags, as in topkit 0.1; write instead: "
        f"def traits(self): return replace(super().traits(), {written})",
        FutureWarning,
        stacklevel=3,
    )
    inherited = recipe.traits

    def traits(self: Any) -> Traits:
        return replace(inherited(self), **{name: getattr(self, name) for name in values})

    recipe.traits = traits
