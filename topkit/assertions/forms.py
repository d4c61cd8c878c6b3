# pyright: strict
"""The inputs of a selection function, cut by row, by query and by key."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from topkit.assertions.arrays import places, tensor, within
from topkit.errors import InputError

# The dimensions of inputs by name, and of what comes out. B, Tq and T are cut; the others stay whole.
FORMS = {
    "queries": "B Hq Tq D",
    "keys": "B Hk T D",
    "values": "B Hk T Dv",
    "scores": ("B T", "B Hs Tq T"),
    "lengths": "lengths",
    "start": "B",
    "stop": "B Tq",
    "block_table": "B pages",
    "index_queries": "B Hi Tq Di",
    "index_keys": "B 1 T Di",
    "index_weights": "B Tq Hi",
    "indices": ("B k", "B Tq k", "B Hs Tq k"),
}
Form = tuple[str, ...]


@dataclass(frozen=True)
class Inputs:
    """Tensors by name with the names of their dimensions, and everything else as it is.

    lengths: the name of the tensor [B] that says how many keys each row has, if there is one; arrays: what came,
    and is handed on, as numpy's.
    """

    tensors: Mapping[str, Tensor]
    forms: Mapping[str, Form]
    others: Mapping[str, object]
    lengths: str | None
    arrays: frozenset[str] = frozenset()

    @classmethod
    def of(cls, inputs: Mapping[str, object], forms: Mapping[str, str]) -> Inputs:
        """Raises: InputError for tensors whose dimensions are not known, or differ."""
        if not isinstance(inputs, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise InputError(
                f"inputs must be names to tensors, as the function takes them; got {type(inputs).__name__}"
            )
        arrays: dict[str, Any] = {
            n: x for n, x in inputs.items() if isinstance(x, (Tensor, np.ndarray)) and x.ndim
        }
        tensors = {name: tensor(x, name) for name, x in arrays.items()}
        listed = sorted(n for n, x in inputs.items() if n in FORMS and isinstance(x, (list, tuple)))
        if listed:
            raise InputError(f"{', '.join(listed)} must be tensors or arrays, to be cut; got lists")
        lacking = sorted(set(forms) - set(tensors) - {"indices"})
        if lacking:
            raise InputError(f"forms tells of {', '.join(lacking)}, which inputs lack")
        known = {name: form_of(name, x, forms) for name, x in tensors.items()}
        lengths = [name for name, form in known.items() if form == ("lengths",)]
        others = {name: x for name, x in inputs.items() if name not in tensors}
        numpys = frozenset(name for name, x in arrays.items() if isinstance(x, np.ndarray))
        made = cls(tensors, known, others, lengths[0] if lengths else None, numpys)
        made._require_sizes()
        return made

    def _require_sizes(self) -> None:
        for symbol in ("B", "Tq"):
            self.size(symbol)
        most = self.size("T")
        if self.lengths is not None and most is not None:
            ends = places(self.tensors[self.lengths], self.lengths)
            within(ends, self.lengths, 0, most, f"slots of {most} keys")

    def size(self, symbol: str) -> int | None:
        """How long a dimension is; None where no tensor has it. A batch of 1 serves all rows."""
        sizes = {
            name: x.shape[form.index(symbol)]
            for name, x in self.tensors.items()
            for form in (self._dims(name),)
            if symbol in form
        }
        several = set(sizes.values()) - ({1} if symbol == "B" else set[int]())
        if len(several) > 1:
            raise InputError(f"{symbol} must be one number; got {sizes} (forms= names dimensions)")
        return next(iter(several), 1 if sizes else None)

    def call(self, select: Callable[..., Any]) -> Any:
        """What the function gives of copies.

        Raises: AssertionError where it wrote over one.
        """
        copies = {name: x.clone() for name, x in self.tensors.items()}
        handed = {name: x.numpy() if name in self.arrays else x for name, x in copies.items()}
        out = select(**handed, **self.others)
        for name, x in self.tensors.items():
            if not torch.equal(_bytes(x), _bytes(copies[name])):
                raise AssertionError(f"the function wrote over its input {name}")
        return out

    def cut(self, symbol: str, begin: int, end: int) -> Inputs:
        """A part of one dimension, of every tensor that has it."""
        made: dict[str, Tensor] = {}
        for name, x in self.tensors.items():
            form = self._dims(name)
            at = form.index(symbol) if symbol in form else -1
            whole = at < 0 or (symbol == "B" and x.shape[at] == 1)
            made[name] = x if whole else x.narrow(at, begin, end - begin)
        return replace(self, tensors=made)

    def queries(self, begin: int, end: int, causal: bool) -> Inputs:
        """Some of the queries, which are the last of the keys that there were then."""
        count = self.size("Tq")
        assert count is not None
        part, behind = self.cut("Tq", begin, end), count - end
        if not causal or "stop" in self.tensors:
            return part
        if self.lengths is not None:
            shorter = (self.tensors[self.lengths] - behind).clamp_min(0)
            return replace(part, tensors={**part.tensors, self.lengths: shorter})
        keys = part.size("T")
        if keys is None or any({"Tq", "T"} <= set(form) for form in self.forms.values()):
            return part  # scores say themselves what is visible
        return part.cut("T", 0, keys - behind)

    def row(self, row: int, least: int) -> Inputs:
        """One row by itself, without its padding but for `least` keys, which a function may want."""
        own = self.cut("B", row, row + 1)
        if self.lengths is None or self.size("T") is None:
            return own
        length = int(places(own.tensors[self.lengths], self.lengths))
        return own.cut("T", 0, min(max(least, length), self.size("T") or 0))

    def padded(self, more: int) -> Inputs:
        """As many keys more, and large numbers in all padding, old and new. Wants lengths."""
        assert self.lengths is not None
        ends = self.tensors[self.lengths].long()
        made = dict(self.tensors)
        for name, x in self.tensors.items():
            form = self._dims(name)
            if "T" in form:
                made[name] = _filled(x, form, ends, more)
        return replace(self, tensors=made)

    def _dims(self, name: str) -> Form:
        form = self.forms[name]
        return ("B",) if form == ("lengths",) else form


def form_of(name: str, x: Tensor, forms: Mapping[str, str]) -> Form:
    """The names of a tensor's dimensions. Raises: InputError where they are not known."""
    known: str | tuple[str, ...] = forms.get(name, FORMS.get(name, ()))
    every = [known] if isinstance(known, str) else list(known)
    for form in every:
        if len(form.split()) == x.dim():
            return tuple(form.split())
    says = f"{name} must be {' or '.join(f'[{form}]' for form in every)}" if every else name
    raise InputError(
        f"{says}: got {list(x.shape)}; name its dimensions, as forms={{{name!r}: 'B Tq H D'}}: B, Tq and T are "
        "rows, queries and keys, and 'lengths' alone a tensor [B] of how many keys each row has"
    )


def _filled(x: Tensor, form: Form, ends: Tensor, more: int) -> Tensor:
    """A tensor whose places behind `ends` hold large numbers, up and down in turn."""
    at = form.index("T")
    shape = list(x.shape)
    if "B" in form:
        shape[form.index("B")] = max(shape[form.index("B")], len(ends))
        x = x.expand(shape)
    shape[at] = more
    grown = torch.cat([x, x.new_zeros(shape)], at)
    slots = torch.arange(grown.shape[at], device=x.device)
    ends = ends.to(x.device)
    hidden = slots >= (ends[:, None] if "B" in form else ends.amax()[None, None])
    dims = [len(hidden) if name == "B" else (len(slots) if name == "T" else 1) for name in form]
    # The dimension of rows stands before that of keys, in whatever order the two are.
    first = hidden if "B" in form and form.index("B") < at else hidden.T
    if x.dtype == torch.bool:  # a mask: what is behind lengths is none
        return grown & ~first.reshape(dims)
    # Four times the largest, where the type has it.
    most = (torch.finfo if x.is_floating_point() else torch.iinfo)(x.dtype).max
    largest = (4 * x.float().double().abs().nan_to_num(0, 0, 0).max()).clamp_max(most)
    sign = (1 - 2 * (slots % 2)).view([-1 if name == "T" else 1 for name in form])
    junk = (largest * sign).expand(grown.shape).to(grown.dtype)
    return torch.where(first.reshape(dims), junk, grown)


def _bytes(x: Tensor) -> Tensor:
    return x.contiguous().reshape(-1).view(torch.uint8)
