"""Hooks and methods added to a module for a while: its copies and pickles are without them."""

from __future__ import annotations

import copy
import copyreg
import functools
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary, ref

from torch import nn
from transformers import PreTrainedConfig

# The state that a copy of an object gets, made of the object's own.
Plain = Callable[[Any, dict[str, Any]], dict[str, Any]]


@dataclass
class _Added:
    """Ids of hooks, and methods with what stood there before (None: nothing)."""

    hooks: set[int] = field(default_factory=set)
    attributes: dict[str, Any] = field(default_factory=dict)


_added: WeakKeyDictionary[nn.Module, _Added] = WeakKeyDictionary()
_plain: dict[type, Plain] = {}


@contextmanager
def hook(module: nn.Module, kind: str, call: Callable[..., Any], **options: Any) -> Iterator[None]:
    """A hook of a module, registered by its method `register_<kind>`, that copies do not have."""
    copied_plainly(type(module), _plain_module)
    handle = getattr(module, f"register_{kind}")(call, **options)
    hooks = _added.setdefault(module, _Added()).hooks
    hooks.add(handle.id)
    try:
        yield
    finally:
        handle.remove()
        hooks.discard(handle.id)


@contextmanager
def replaced(module: nn.Module, name: str, method: Callable[..., Any]) -> Iterator[None]:
    """A method of this one module is `method`, which gets the module's own as its first argument.

    What others put in its place meanwhile stays.
    """
    copied_plainly(type(module), _plain_module)
    own, before = getattr(module, name), vars(module).get(name)

    @functools.wraps(own)
    def call(*args: Any, **kwargs: Any) -> Any:
        return method(own, *args, **kwargs)

    attributes = _added.setdefault(module, _Added()).attributes
    attributes[name] = ref(call), before  # a call holds its module
    setattr(module, name, call)
    try:
        yield
    finally:
        del attributes[name]
        if vars(module).get(name) is call:
            delattr(module, name)
            if before is not None:
                setattr(module, name, before)


def copied_plainly(kind: type, plain: Plain) -> None:
    """Objects of a class are copied and pickled from now on with the state that `plain` makes of theirs."""
    if kind not in copyreg.dispatch_table:
        _plain[kind] = plain
        copyreg.pickle(kind, _reduce)  # type: ignore[arg-type]


def _reduce(x: Any) -> Any:
    # Protocol 2 is what torch.save writes, and later ones read it.
    make, args, state, *rest = x.__reduce_ex__(2)
    if isinstance(state, dict):
        state = _plain[type(x)](x, state)
        # A shallow copy shares what it holds, and so would share the modules that are not plain.
        shallow = isinstance(x, nn.Module) and sys._getframe(1).f_code is copy.copy.__code__
        if shallow and any(map(_is_changed, x.modules())):
            state = _unshared(state, {})
    return (make, args, state, *rest)


def _is_changed(module: nn.Module) -> bool:
    added = _added.get(module)
    return added is not None and bool(added.hooks or added.attributes)


def _plain_module(module: nn.Module, state: dict[str, Any]) -> dict[str, Any]:
    added = _added.get(module)
    if added is None:
        return state
    plain = {
        name: OrderedDict((i, x) for i, x in value.items() if i not in added.hooks)
        if name.startswith(("_forward_hooks", "_forward_pre_hooks"))
        else value
        for name, value in state.items()
    }
    for name, (call, before) in added.attributes.items():
        if plain.get(name) is call():
            del plain[name]
            if before is not None:
                plain[name] = before
    return plain


def _unshared(state: dict[str, Any], memo: dict[int, Any]) -> dict[str, Any]:
    """A module's state with modules, dictionaries and configs of its own, and the same tensors."""
    own = {name: copy.copy(x) if isinstance(x, dict) else x for name, x in state.items()}
    own["_modules"] = {name: _twin(x, memo) for name, x in state["_modules"].items()}
    for name, x in state.items():
        if isinstance(x, PreTrainedConfig):
            own[name] = copy.deepcopy(x, memo)
    return own


def _twin(module: nn.Module | None, memo: dict[int, Any]) -> nn.Module | None:
    if module is None or id(module) in memo:
        return module and memo[id(module)]
    twin = memo[id(module)] = object.__new__(type(module))
    twin.__dict__.update(_unshared(_plain_module(module, vars(module)), memo))
    return twin
