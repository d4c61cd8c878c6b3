"""What a recipe or a task depends on beside its text: files, values, and code of its own.

A text names a thing in every table, but does not tell one content of a file from the next, nor a big
tensor from another, nor last week's code of one's own class from today's.
"""

# pyright: strict, reportUnnecessaryIsInstance=false
from __future__ import annotations

import hashlib
import os
import pickle
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import fields, is_dataclass, replace
from functools import cached_property
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from topkit.documents.digest import file_digest
from topkit.errors import InputError
from topkit.experiments.runs.source import code_of
from topkit.grammar import Named, unprinted

# What may differ, in words.
KINDS = {
    "files": "a file that it reads has other content",
    "values": "it holds other values",
    "code": "its code has changed",
}
Contents = dict[str, str]


def contents(thing: Named) -> Contents:
    """Digests of the files that a thing reads, of its values that no text tells, and of its own code.

    Nothing for what its text tells in full. Code is that of a class outside topkit: the definition,
    what it uses of its module, and the modules of its own package that it imports.
    """
    files, values, code = list[str](), list[str](), list[str]()
    for one in within(thing):
        files += [_of_file(path) for path in one.files()]
        values += _unshown(one)
        code += [text for cls in type(one).__mro__ if (text := code_of(cls))]
    kinds = {"files": files, "values": values, "code": list(dict.fromkeys(code))}
    return {kind: _digest(texts) for kind, texts in kinds.items() if texts}


def files_of(thing: Named) -> str | None:
    """The digest of the files that a thing reads, as `contents` has it."""
    files = [_of_file(path) for one in within(thing) for path in one.files()]
    return _digest(files) if files else None


def of_all(things: Iterable[Named]) -> dict[str, Contents]:
    """The contents of several things by name, those that hold nothing left out.

    Raises: InputError for two of one name that hold different things: their rows could not be told apart.
    """
    known: dict[str, Contents] = {}
    for thing in things:
        its = contents(thing)
        if known.setdefault(repr(thing), its) != its:
            raise InputError(
                f"two of {_cut(repr(thing))} have one name and hold different things; give them a "
                "parameter that tells them apart, and run them apart until then"
            )
    return {name: its for name, its in known.items() if its}


def require_same(
    where: Path, there: Mapping[str, Mapping[str, str]], now: Mapping[str, Contents]
) -> None:
    """Raises: InputError naming a thing whose rows in a folder were made of other contents."""
    for name, its in now.items():
        before = there.get(name, its)
        for kind, words in KINDS.items():
            if before.get(kind) != its.get(kind):
                raise InputError(
                    f"{_cut(name)} is not what it was when {where} was begun: {words}; use another "
                    "folder, or --force"
                )


def within(thing: Named) -> Iterator[Named]:
    """A thing and all that it is made of."""
    yield thing
    for value in _values(thing).values():
        for part in value if isinstance(value, list | tuple) else (value,):  # type: ignore[misc]
            if isinstance(part, Named):
                yield from within(part)


def _values(thing: Named) -> dict[str, Any]:
    """A thing's attributes but for cached properties, which follow from the others."""
    fresh: Any = thing
    if is_dataclass(thing):
        with suppress(TypeError, ValueError):  # one that is not made of its fields alone
            fresh = replace(thing)
    attributes = {**getattr(fresh, "__dict__", {})}
    attributes |= (
        {f.name: getattr(fresh, f.name) for f in fields(fresh)} if is_dataclass(fresh) else {}
    )
    lazy = {
        n for c in type(thing).__mro__ for n, x in vars(c).items() if isinstance(x, cached_property)
    }
    return {name: x for name, x in sorted(attributes.items()) if name not in lazy}


def _unshown(thing: Named) -> Iterator[str]:
    """A line for each attribute whose value the thing's repr does not show."""
    shown, silent = repr(thing), unprinted(thing)
    for name, value in _values(thing).items():
        if name in silent:
            continue
        plain = isinstance(value, Path | str | Real | tuple | None)
        if not isinstance(value, Named) and not (plain and f"{name}={_text(value)}" in shown):
            yield f"{name}={_text(value)}"


def _text(value: Any) -> str:
    """A text that differs for different values; where there is none, the name of the class."""
    if isinstance(value, Real) and not isinstance(value, bool):
        return repr(int(value) if isinstance(value, Integral) else float(value))
    if isinstance(value, Path):
        return repr(str(value))
    if isinstance(value, nn.Module):
        return _text(value.state_dict())
    if isinstance(value, Tensor):
        data = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        return f"{value.dtype} {tuple(value.shape)} {hashlib.sha256(data.data).hexdigest()}"
    if isinstance(value, np.ndarray):
        return f"{np.dtype(value.dtype)} {hashlib.sha256(pickle.dumps(value)).hexdigest()}"  # type: ignore[misc]
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{k!r}: {_text(x)}" for k, x in value.items()) + "}"  # type: ignore[misc]
    if isinstance(value, set | frozenset):
        return "{" + ", ".join(sorted(map(_text, value))) + "}"  # type: ignore[arg-type]
    if isinstance(value, list | tuple):
        return "(" + ", ".join(map(_text, value)) + ")"  # type: ignore[arg-type]
    # An address tells this process's objects apart, and no content.
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value))


def _of_file(path: Path) -> str:
    """The digest of a file's content, or of all files of a folder and their names."""
    if path.is_dir():
        return _digest(
            f"{(Path(folder) / name).relative_to(path)} {_of_file(Path(folder) / name)}"
            for folder, _, names in sorted(os.walk(path))
            for name in sorted(names)
        )
    try:
        return file_digest(path)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error


def _digest(texts: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(texts).encode("utf-8", "surrogatepass")).hexdigest()[:20]


def _cut(text: str) -> str:
    return text if len(text) <= 200 else f"{text[:200]}..."
