"""Specs: indexers written as text, in the call form or the shell-safe form.

keep(refine(sign(), factor=4), sink=4)        what repr gives
quantized:dtype=int4,hadamard=true            no character that a shell would touch
"""

from __future__ import annotations

import ast
import difflib
import shlex
from collections.abc import Iterable
from dataclasses import MISSING, fields
from typing import Any

from topkit.errors import InputError
from topkit.indexers.base import Indexer, parameters

_WORDS = {"true": True, "false": False, "null": None}


def parse(spec: str | Indexer, registry: dict[str, type[Indexer]] | None = None) -> Indexer:
    """The indexer that a spec names.

    Raises: InputError for a spec that does not parse, an unknown name or a misspelt parameter (the
    nearest is suggested), and a value that the recipe refuses.
    """
    if isinstance(spec, Indexer):
        return spec
    if not isinstance(spec, str):
        hint = f"; write {spec.__name__}()" if isinstance(spec, type) else ""
        raise InputError(f"expected an indexer such as quest(page_size=16); got {spec!r}{hint}")
    if registry is None:
        from topkit.indexers import INDEXERS as registry
    try:
        return _build(_tree(spec), spec, registry)
    except (RecursionError, MemoryError):  # Python's parser raises either
        raise InputError(f"cannot read the indexer {spec[:40]!r}...: nested too deeply") from None


def quoted(spec: str | Indexer) -> str:
    """A spec as one shell word."""
    return shlex.quote(short(spec) if isinstance(spec, Indexer) else spec)


def short(indexer: Indexer) -> str:
    """The spec without what is default: `refine(sign())`."""
    shown = []
    for place, f in enumerate(fields(indexer)):  # type: ignore[arg-type]
        value = getattr(indexer, f.name)
        if f.default is not MISSING and value == f.default:
            continue
        text = short(value) if isinstance(value, Indexer) else repr(value)
        bare = place == 0 and isinstance(value, Indexer)
        shown.append(text if bare else f"{f.name}={text}")
    return f"{type(indexer).__name__}({', '.join(shown)})"


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint to the nearest known name, or all of them."""
    known = list(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(sorted(known))}"


def _tree(spec: str) -> ast.expr:
    text = spec.strip()
    head, colon, tail = text.partition(":")
    if colon and "(" not in head:
        return _bare(head, tail)
    try:
        return ast.parse(text, mode="eval").body
    except (SyntaxError, ValueError) as error:
        raise InputError(
            f"cannot read the indexer {spec!r}; write name(parameter=value) or name:parameter=value"
        ) from error


def _bare(name: str, tail: str) -> ast.expr:
    """The call that name:parameter=value,parameter=value stands for."""
    call = ast.Call(ast.Name(name.strip()), [], [])
    for part in filter(str.strip, _parts(tail)):
        key, equals, value = part.partition("=")
        if equals and key.strip().isidentifier():
            call.keywords.append(ast.keyword(key.strip(), _word(value.strip())))
        else:
            call.args.append(_word(part.strip()))
    return call


def _parts(text: str) -> list[str]:
    """What stands between commas, but for those in brackets and quotes."""
    parts, depth, quote = [""], 0, ""
    for c in text:
        if quote or c in "'\"":
            quote = "" if c == quote else quote or c
        else:
            depth += (c in "([{") - (c in ")]}")
        if c == "," and not quote and depth == 0:
            parts.append("")
        else:
            parts[-1] += c
    return parts


def _word(text: str) -> ast.expr:
    """A call, a name or a literal; anything else, as a path, is the text itself."""
    try:
        node = ast.parse(text, mode="eval").body
        if not isinstance(node, ast.Call | ast.Name):
            ast.literal_eval(node)
        return node
    except (SyntaxError, ValueError, TypeError):
        return ast.Constant(text)


def _build(node: ast.expr, spec: str, registry: dict[str, type[Indexer]]) -> Indexer:
    name, args, keywords = _call(node, spec)
    if name not in registry:
        raise InputError(f"unknown indexer {name!r}; {nearest(name, registry)}")
    recipe = registry[name]
    known = parameters(recipe)
    if len(args) > len(known):
        raise InputError(
            f"{name} takes {len(known)} parameters ({', '.join(known)}); got {len(args)}"
        )
    values = {p: _value(a, spec, registry) for p, a in zip(known, args, strict=False)}
    for keyword in keywords:
        if keyword.arg is None or keyword.arg in values:
            raise InputError(
                f"{name}: parameter {keyword.arg or '**'!r} is given twice in {spec!r}"
            )
        if keyword.arg not in known:
            hint = nearest(keyword.arg, known) if known else "it takes none"
            raise InputError(f"{name} has no parameter {keyword.arg!r}; {hint}")
        values[keyword.arg] = _value(keyword.value, spec, registry)
    for field in fields(recipe):  # type: ignore[arg-type]
        bare = field.default is MISSING and field.default_factory is MISSING
        if bare and field.name not in values:
            hint = f"write {name}({field.name}=...)"
            raise InputError(f"{name}: {field.name} has no default; {hint}")
    try:
        return recipe(**values)
    except TypeError as error:
        raise InputError(f"{name}: {error}") from error


def _call(node: ast.expr, spec: str) -> tuple[str, list[ast.expr], list[ast.keyword]]:
    if isinstance(node, ast.Name):
        return node.id, [], []
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        return node.func.id, node.args, node.keywords
    raise InputError(f"expected an indexer such as quest(page_size=16); got {spec!r}")


def _value(node: ast.expr, spec: str, registry: dict[str, type[Indexer]]) -> Any:
    if isinstance(node, ast.Call) or (isinstance(node, ast.Name) and node.id in registry):
        return _build(node, spec, registry)
    if isinstance(node, ast.Name):
        return _WORDS.get(node.id.lower(), node.id)
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError) as error:
        raise InputError(f"cannot read {ast.unparse(node)!r} in {spec!r} as a value") from error
