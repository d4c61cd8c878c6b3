"""Triton's interpreter without what it repeats: for each call within a kernel it looks through the whole language."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache
from typing import Any

NEEDED = {"_patch_lang", "_patch_builtin", "_patch_attr", "_LangPatchScope", "_get_np_dtype"}


def hasten() -> None:
    """Let a launch replace the language's builtins by name, and calls within it find them replaced.

    A Triton whose interpreter is made otherwise stays as it is.
    """
    try:
        import triton.language as tl
        from triton.runtime import interpreter
    except ImportError:
        return
    made: Any = interpreter
    if not set(vars(made)) >= NEEDED:
        return
    replace, number_of, is_builtin = made._patch_lang, made._get_np_dtype, tl.core.is_builtin
    numbers: dict[str, Any] = {}

    @cache
    def names(owner: Any) -> list[str]:
        return [name for name, member in inspect.getmembers(owner) if is_builtin(member)]

    def replace_by_name(owner: Any, builder: Any, scope: Any) -> None:
        for name in names(owner):
            member = getattr(owner, name)
            if is_builtin(member):
                made._patch_attr(owner, name, member, builder, scope)

    def replace_once(function: Callable[..., Any]) -> Any:
        seen = [x for x in function.__globals__.values() if x is tl or x is tl.core]
        if seen and not any(is_builtin(language.load) for language in seen):
            return made._LangPatchScope()
        return replace(function)

    def number(kind: Any) -> Any:
        name = kind.scalar.name
        if name not in numbers:
            numbers[name] = number_of(kind)
        return numbers[name]

    made._patch_builtin, made._patch_lang, made._get_np_dtype = (
        replace_by_name,
        replace_once,
        number,
    )
