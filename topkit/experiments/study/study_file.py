"""A study as a file: its keys, read from a preset's name or a path, and what stands over them."""

# pyright: strict
from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from topkit.documents import path_of, quote, read_yaml
from topkit.errors import InputError
from topkit.experiments.study.design import Pilot, Study
from topkit.experiments.study.keys import PILOT, READERS, TRAINING, read_keys
from topkit.experiments.study.preset_files import FOLDER, REMEDY, names
from topkit.experiments.study.readers import listed
from topkit.grammar import nearest

# A file begins from another one, whose keys it may set anew; among its indexers the word stands for the other's.
LIKE, DEEPEST = "like", 8
# What a model of several may have of its own.
OWN = ("tasks", "lengths", "haystacks", "budgets", "budget", "indexers", "pilot", "training")


def read_study(study: str | Path, **over: Any) -> Study:
    """The study of a name or a file; `over` are keys that stand over the file's, None for none.

    Raises: InputError for an unknown name, a file that is no study, and a value that does not do, by its key.
    """
    path = _path(study)
    values = _written(path)
    flags = {key: value for key, value in over.items() if value is not None}
    own = _own(values, str(path))
    made = _made(path, values, flags)
    theirs = {name: _made(path, _with(values, keys), flags) for name, keys in own.items()}
    return replace(made, own={name: one for name, one in theirs.items() if name in made.model})


def _own(values: dict[str, Any], where: str) -> dict[str, Mapping[str, Any]]:
    """The keys that models have of their own, which are taken out of a file's models."""
    own: dict[str, Mapping[str, Any]] = {}
    models = listed(values.get("model", ()))
    for place, model in enumerate(models):
        if not isinstance(model, Mapping):
            continue
        entries = list(cast("Mapping[Any, Any]", model).items())
        if len(entries) != 1 or not isinstance(entries[0][1], Mapping):
            raise InputError(
                f"{where}: model: expected one name with keys of its own, as {{reference: {{budgets: 16}}}}; "
                f"got {quote(cast('Mapping[Any, Any]', model))}"
            )
        models[place], keys = entries[0]
        own[str(models[place])] = cast("Mapping[str, Any]", keys)
        for key in keys:
            if key not in OWN:
                raise InputError(
                    f"{where}: model: a model has no {quote(key)} of its own; {nearest(str(key), OWN)}"
                )
    if own:
        values["model"] = models
    return own


def _with(values: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """A file's keys with those of a model over them."""
    pilot = {"pilot": _over(values.get("pilot"), own["pilot"])} if "pilot" in own else {}
    return {**values, **own, **pilot}


def _made(path: Path, values: Mapping[str, Any], flags: dict[str, Any]) -> Study:
    """The study of a file's keys, and of flags that stand over them."""
    if "pilot" in flags:
        flags = flags | {"pilot": _over(values.get("pilot"), flags["pilot"])}
    written, said = _read(values, str(path)), _read(flags, "study")
    if written.get("leaderboard") and "indexers" in said:
        # Whoever joins stands beside those that are there, and runs at their budgets.
        said["indexers"] = tuple(dict.fromkeys((*written.get("indexers", ()), *said["indexers"])))
    keys: dict[str, Any] = written | said
    if "budgets" in flags and "indexers" not in flags:
        keys["indexers"] = _without_own(keys.get("indexers", ()))
    if "lengths" in flags and "tasks" not in flags:
        keys["tasks"] = _without_own(keys.get("tasks", ()))
    if "captures" in keys:
        nothing: dict[str, Any] = {"tasks": (), "haystacks": 1}
        keys = nothing | keys
    for key in ("tasks", "haystacks", "indexers"):
        if key not in keys:
            raise InputError(f"{path}: {key} is missing; {REMEDY}")
    made = Study(name=path.stem, **keys)
    for part in made.parts(made.settings):  # what lacks a length, a budget or a number
        assert part.cells
    return made


def _path(study: str | Path) -> Path:
    """A study's file; a name stands before a file called so."""
    path = path_of(study, f"a study: a YAML file, or {', '.join(names())}")
    if str(study) in names():
        return FOLDER / f"{study}.yaml"
    if path.suffix in (".yaml", ".yml") or _stands(path) or len(path.parts) > 1:
        return path
    raise InputError(f"unknown study {quote(str(study))}; {nearest(str(study), names())}")


def _stands(path: Path) -> bool:
    """Whether there is such a file; a name may be none that a file can have."""
    with suppress(OSError):
        return path.is_file()
    return False


def _written(path: Path, depth: int = 0) -> dict[str, Any]:
    """The keys of a file, behind those of the file that it begins from."""
    values: dict[str, Any] = read_yaml(path, {str: object}, REMEDY)
    like = values.pop(LIKE, None)
    if like is None:
        return values
    if depth == DEEPEST:
        raise InputError(f"{path}: more than {DEEPEST} files begin from one another; {REMEDY}")
    if not isinstance(like, str):
        raise InputError(f"{path}: {LIKE}: expected a study's name or file; got {quote(like)}")
    beside = path.parent / like
    if like not in names() and not _stands(beside):
        raise InputError(
            f"{path}: {LIKE}: there is no study {quote(like)}, by name or from the folder of this file; "
            f"{nearest(like, names())}"
        )
    first = _written(_path(like) if like in names() else beside, depth + 1)
    if isinstance(values.get("indexers"), list):
        values["indexers"] = _joined(values["indexers"], listed(first.get("indexers", ())))
    return first | values


def _joined(indexers: list[Any], theirs: Sequence[Any]) -> list[Any]:
    """Indexers of a file, in which `like` stands for those of the file that it begins from."""
    return [x for one in indexers for x in (theirs if one == LIKE else [one])]


def _read(values: Mapping[str, Any], where: str) -> dict[str, Any]:
    return read_keys(
        values, {**READERS, "pilot": _pilot, "training": _training, LIKE: _misplaced}, where
    )


def _pilot(value: Any) -> Pilot | None:
    if isinstance(value, Pilot):
        return value
    if isinstance(value, bool):
        return Pilot() if value else None
    if not isinstance(value, Mapping):
        raise InputError(f"expected true, false or a mapping; got {quote(value)}")
    return Pilot(**read_keys(cast("Mapping[str, Any]", value), PILOT))


def _training(value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise InputError(f"expected a mapping; got {quote(value)}")
    keys = read_keys(cast("Mapping[str, Any]", value), TRAINING)
    if "ratios" not in keys:
        raise InputError("ratios is missing; say which, as ratios: 1%")
    return keys


def _over(pilot: Any, flag: Any) -> Any:
    """A pilot's keys over those of a file."""
    if not isinstance(pilot, Mapping) or not (flag is True or isinstance(flag, Mapping)):
        return flag
    keys = cast("Mapping[str, Any]", pilot)
    return {**keys, **({} if flag is True else cast("Mapping[str, Any]", flag))}


def _misplaced(value: Any) -> None:
    raise InputError("it stands in files alone")


def _without_own(things: tuple[tuple[Any, Any], ...]) -> tuple[tuple[Any, None], ...]:
    return tuple(dict.fromkeys((thing, None) for thing, _ in things))
