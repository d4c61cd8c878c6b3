"""The code that a class of one's own runs: its definition, and what that uses of its own package."""

# pyright: strict
from __future__ import annotations

import ast
import inspect
import symtable
import sys
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from types import CodeType, FunctionType

# Of these a version says enough, or nothing of theirs makes a row.
_KNOWN = {"topkit", "torch", "numpy", *sys.stdlib_module_names} - {"__main__"}


def code_of(cls: type) -> str:
    """A text of a class's code; nothing for one of topkit, torch, NumPy or Python itself.

    Comments and layout change nothing, nor does what the class does not use. Where there is no source,
    as at a prompt, the text is of the compiled methods.
    """
    # Spawned processes know the main module by another name.
    module = "__main__" if cls.__module__ == "__mp_main__" else cls.__module__
    if module.partition(".")[0] in _KNOWN:
        return ""
    file = _file(cls)
    if file is None:
        return f"{cls.__qualname__} {_compiled(cls)}"
    return _used(file, cls.__qualname__.partition(".")[0], file.stat().st_mtime_ns)


def _file(cls: type) -> Path | None:
    try:
        name = inspect.getsourcefile(cls)
    except (TypeError, OSError):
        return None
    return Path(name) if name and Path(name).is_file() else None


@lru_cache(maxsize=256)
def _used(path: Path, name: str, _changed: int) -> str:
    """The statements of a file that define a name, and those that they use, in their order.

    Modules of its own package that these import follow, each whole.
    """
    statements = ast.parse(path.read_bytes()).body
    own = {name for statement in statements for name in _assigned(statement)}
    by_name: dict[str, list[int]] = {}
    for place, statement in enumerate(statements):
        for defined in {*_bound(statement), *(_changed_in_place(statement) & own)}:
            by_name.setdefault(defined, []).append(place)
    reached, left = set[int](), [name]
    while left:
        for place in by_name.get(left.pop(), ()):
            if place not in reached:
                reached.add(place)
                left += _globals(statements[place])
    used = [statements[place] for place in sorted(reached)]
    others: dict[Path, str] = {}
    for statement in used:
        _imported(statement, path, others)
    others.pop(path, None)
    return "\n".join([*map(ast.unparse, used), *(others[file] for file in sorted(others))])


def _assigned(statement: ast.stmt) -> set[str]:
    """The names that a statement assigns to, at any depth."""
    return {
        node.id
        for node in ast.walk(statement)
        if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load)
    }


def _bound(statement: ast.stmt) -> set[str]:
    """The names that a statement of a module's top level gives a meaning to."""
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return {statement.name}
    names = _assigned(statement)
    for node in ast.walk(statement):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.alias):
            names.add((node.asname or node.name).partition(".")[0])
    return names


def _changed_in_place(statement: ast.stmt) -> set[str]:
    """The names of what a statement may change without assigning: TABLE["x"] = 1, table.update(...)."""
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return set()
    return {
        node.value.id
        for node in ast.walk(statement)
        if isinstance(node, ast.Attribute | ast.Subscript) and isinstance(node.value, ast.Name)
    }


def _globals(statement: ast.stmt) -> set[str]:
    """The names of its module that a statement reads; those of its functions' own are others."""

    def within(table: symtable.SymbolTable, top: bool) -> Iterator[str]:
        yield from (s.get_name() for s in table.get_symbols() if top or s.is_global())
        for inner in table.get_children():
            yield from within(inner, False)

    return set(within(symtable.symtable(ast.unparse(statement), "", "exec"), True))


def _imported(statement: ast.stmt, path: Path, others: dict[Path, str]) -> None:
    """Add the texts of the own modules that a statement imports, and of those that they import."""
    for file in _own_modules(statement, path):
        if file not in others:
            tree = ast.parse(file.read_bytes())
            others[file] = ast.unparse(tree)
            for inner in tree.body:
                _imported(inner, file, others)


def _own_modules(statement: ast.stmt, path: Path) -> Iterator[Path]:
    """The files of its own package or folder that a statement of a file imports."""
    for node in ast.walk(statement):
        names, base = list[str](), None
        if isinstance(node, ast.ImportFrom):
            base = path.parents[node.level - 1] if node.level else None
            names = [node.module or "", *(f"{node.module or ''}.{a.name}" for a in node.names)]
        elif isinstance(node, ast.Import):
            names = [a.name for a in node.names]
        yield from (file for name in names if (file := _module(name, path, base)))


def _module(name: str, path: Path, base: Path | None) -> Path | None:
    """The file of a module of the importing file's own package or folder."""
    words = [word for word in name.split(".") if word]
    root = path.parent
    while (root / "__init__.py").is_file():
        root = root.parent
    target = (base or root).joinpath(*words)
    files = (target.parent / f"{target.name}.py", target / "__init__.py")
    return next((file for file in files if words and file.is_file()), None)


def _compiled(cls: type) -> str:
    functions = [
        part
        for x in vars(cls).values()
        for part in (x, getattr(x, "__func__", None), getattr(x, "fget", None))
        if isinstance(part, FunctionType)
    ]
    return " ".join(text for f in functions for text in _instructions(f.__code__))


def _instructions(code: CodeType) -> Iterator[str]:
    yield f"{code.co_name} {code.co_code.hex()} {code.co_names}"
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _instructions(constant)
        else:
            yield repr(constant)
