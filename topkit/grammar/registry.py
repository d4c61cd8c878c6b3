"""The names of one kind of thing: topkit's own, those of plug-ins, and those of any module."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, is_dataclass, replace
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Generic, TypeVar, cast

from topkit.errors import InputError

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Registry(Generic[T]):
    """Where the names of a kind of thing are looked up.

    kind: the word for one, as errors say it; base: what each derives from; own: topkit's own, by name;
    group: the entry points of other packages; example: a text that parses.
    """

    kind: str
    base: type[T]
    own: Mapping[str, type[T]]
    group: str
    example: str

    def name(self, thing: type[T]) -> str:
        """The one name of a class: its own in topkit, else package.module:name."""
        own = next((name for name, known in self.own.items() if known is thing), "")
        # Spawned processes know the main module by another name.
        module = "__main__" if thing.__module__ == "__mp_main__" else thing.__module__
        return own or f"{module}:{thing.__qualname__}"

    def find(self, name: str) -> type[T]:
        """The class of a name: topkit's own first, then a plug-in's, or a module's.

        Imports the module that the name names.
        Raises: InputError for an unknown name, for one of two packages, for what cannot be imported
        and for what is no such class.
        """
        if name in self.own:
            return self.own[name]
        module, colon, path = name.partition(":")
        if colon:
            return self._checked(self._in_module(module, path), name)
        points = self.plugins().get(name, [])
        if len({point.value for point in points}) > 1:
            packages = " and ".join(sorted(package_of(point) for point in points))
            values = " or ".join(sorted(point.value for point in points))
            raise InputError(f"{self.kind} {name!r} is of two packages, {packages}; write {values}")
        if not points:
            known = [*self.own, *self.plugins()]
            raise InputError(f"unknown {self.kind} {name!r}; {nearest(name, known)}")
        return self._loaded(points[0])

    def plugins(self) -> dict[str, list[EntryPoint]]:
        """The entry points of other packages, by name; nothing of them is imported."""
        named: dict[str, list[EntryPoint]] = {}
        for point in entry_points(group=self.group):
            named.setdefault(point.name, []).append(point)
        return named

    def listed(self) -> Iterator[tuple[str, str, type[T] | str]]:
        """(name, package, class) of all that has a name; in place of the class, why there is none."""
        yield from ((name, "topkit", thing) for name, thing in self.own.items())
        for name, points in sorted(self.plugins().items()):
            package = " and ".join(sorted({package_of(point) for point in points}))
            try:
                if name in self.own:
                    clash = f"hidden by topkit's own {name}; write {points[0].value}"
                    raise InputError(clash)
                yield name, package, self.find(name)
            except InputError as error:
                yield name, package, str(error)

    def knows(self, word: str) -> bool:
        """Whether a word is a name by itself, and no module's."""
        return word in self.own or ("." not in word and word in self.plugins())

    def described(self, thing: type[T]) -> str:
        """A class as errors about its code name it: with its module, and its package where it is a plug-in."""
        name = self.name(thing)
        points = [p for listed in self.plugins().values() for p in listed if p.value == name]
        package = f" of the package {package_of(points[0])}" if points else ""
        return f"{self.kind} {name}{package}"

    def beside(self, own: Mapping[str, type[T]]) -> Registry[T]:
        """This registry with other names for topkit's own."""
        return replace(self, own=own)

    def _loaded(self, point: EntryPoint) -> type[T]:
        where = f"{self.kind} {point.name!r} of the package {package_of(point)}"
        try:
            thing = point.load()
        except (Exception, SystemExit) as error:
            raise InputError(
                f"{where} cannot be imported from {point.value}: {said(error)}; mend that package, or "
                f"remove it"
            ) from error
        return self._checked(thing, f"{point.value}, {where},")

    def _in_module(self, module: str, path: str) -> object:
        try:
            thing: Any = import_module(module)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{module}.".startswith(f"{error.name}."):
                raise InputError(f"cannot import {module}: {said(error)}") from error
            hint = f"unknown {self.kind} {module!r}; {nearest(module, self.own)} There is "
            raise InputError(
                f"{hint if hint.endswith('? There is ') else ''}no module {error.name!r} to import "
                f"the {self.kind} {path!r} from; install it, or name its folder in PYTHONPATH"
            ) from None
        except (Exception, SystemExit) as error:
            raise InputError(f"cannot import {module}: {said(error)}") from error
        for word in path.split("."):
            try:
                thing = getattr(thing, word)
            except AttributeError:
                inside = cast("dict[str, object]", getattr(thing, "__dict__", {}))
                known = [n for n, x in inside.items() if self._is_one(x)]
                hint = f"; {nearest(word, known)}" if known else ""
                raise InputError(f"{module} has no {self.kind} {path!r}{hint}") from None
            except Exception as error:  # a module's own __getattr__
                raise InputError(f"{module} failed on {word!r}: {said(error)}") from error
        return thing

    def _is_one(self, thing: object) -> bool:
        if not (isinstance(thing, type) and issubclass(thing, self.base)):
            return False
        return is_dataclass(thing) and getattr(thing, "__dataclass_params__").frozen  # noqa: B009

    def _checked(self, thing: Any, name: str) -> type[T]:
        if not self._is_one(thing):
            base = f"{self.base.__module__}.{self.base.__name__}"
            raise InputError(
                f"{name} is no {self.kind}: expected a class derived from {base} under "
                f"@dataclass(frozen=True); got {cut(repr(thing))}"
            )
        return thing


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint to the nearest known name, or all of them."""
    known = list(known)
    close = difflib.get_close_matches(str(name), known, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(sorted(known))}"


def package_of(point: EntryPoint) -> str:
    """The package that an entry point is of."""
    return "?" if point.dist is None else point.dist.name


def said(error: BaseException) -> str:
    """An error of code outside topkit in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())


def cut(text: str) -> str:
    """A text as an error quotes it."""
    return repr(text) if len(text) <= 200 else f"{text[:40]!r}..."
