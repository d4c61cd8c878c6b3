"""--config FILE.yaml: defaults for a command's options; flags on the command line override them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

from topkit.documents import quote, read_yaml
from topkit.errors import InputError

REMEDY = "write lines of `option: value`"


def read_config(context: typer.Context, path: Path | None) -> Path | None:
    """Take the values of a YAML file as the command's defaults; the keys are its option names.

    Raises: InputError for a file that cannot be read and for a key that is no option.
    """
    if path is None or context.resilient_parsing:
        return path
    known = _options(context)
    defaults = {}
    for key, value in read_yaml(path, {str: object}, REMEDY).items():
        name = str(key).removeprefix("--").replace("-", "_")
        if name not in known:
            from topkit.grammar import nearest

            raise InputError(
                f"{path}: {context.info_name} has no option {key!r}; {nearest(name, known)}"
            )
        several = value if isinstance(value, list) else [value]
        if not all(isinstance(one, str | int | float) for one in several):
            raise InputError(f"{path}: {key} must be one value or a list; got {quote(value)}")
        defaults[known[name].name] = _as_flag(known[name], value)
    context.default_map = {**(context.default_map or {}), **defaults}
    return path


def _options(context: typer.Context) -> dict[str, Any]:
    """Options and arguments by every spelling, without the ones that make no sense in a file."""
    named = {}
    for option in context.command.params:
        for spelling in (option.name, *option.opts):
            named[spelling.lstrip("-").replace("-", "_")] = option
    return {name: x for name, x in named.items() if x.name not in ("config", "help")}


def _as_flag(option: Any, value: Any) -> Any:
    """The value as on the command line, so that both are parsed in the same way."""
    if isinstance(value, bool):
        return value
    values = [str(x) for x in value] if isinstance(value, list) else [str(value)]
    return values if getattr(option, "multiple", False) else ",".join(values)
