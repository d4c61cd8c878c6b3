"""Documents from disk: JSON and YAML."""

# pyright: strict, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false
# (PyYAML comes without types.)
from __future__ import annotations

import json
import stat
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from topkit.documents.schema import DEEPEST, Schema, check, quote
from topkit.errors import InputError

# A larger document is none of topkit's, and would fill the machine's memory.
MOST_BYTES = 1 << 30


def read_json(path: str | Path, schema: Schema, remedy: str) -> Any:
    """The content of a JSON file.

    Raises: InputError naming the file, the place in it, what was expected, what came, and the remedy.
    """
    return parse_json(read_bytes(path, remedy), schema, path, remedy)


def parse_json(text: str | bytes, schema: Schema, source: str | Path, remedy: str) -> Any:
    """The content of a JSON text that stands in `source`. Raises: as `read_json`."""

    def parse() -> Any:
        decoded = text if isinstance(text, str) else text.decode("utf-8")
        return json.loads(decoded, object_pairs_hook=_once, parse_constant=_finite)

    return _parsed(parse, "JSON", schema, source, remedy)


def read_yaml(path: str | Path, schema: Schema, remedy: str) -> Any:
    """The content of a YAML file. Raises: as `read_json`."""
    import yaml

    class Loader(yaml.SafeLoader):
        def compose_node(self, parent: Any, index: Any) -> Any:
            alias = self.check_event(yaml.AliasEvent)
            node = super().compose_node(parent, index)
            # Lists of aliases of lists would stand for gigabytes in a few lines.
            if alias and not isinstance(node, yaml.ScalarNode):
                raise ValueError("an alias (*name) may stand for one value, not for several")
            return node

        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            keys = [self.construct_object(key, deep=True) for key, _ in node.value]
            # A name may look like a number: {4096: 64}.
            _once((str(key) if type(key) is int else key, None) for key in keys)
            made = super().construct_mapping(node, deep)
            return {str(key) if type(key) is int else key: value for key, value in made.items()}

    text = read_bytes(path, remedy)
    return _parsed(lambda: yaml.load(text, Loader), "YAML", schema, path, remedy)


def read_bytes(path: str | Path, remedy: str) -> bytes:
    """What a plain file holds. Raises: InputError when it is none, or cannot be read."""
    path = Path(path)
    try:
        about = path.stat()
        if not stat.S_ISREG(about.st_mode):
            raise InputError(f"{path} is no plain file; {remedy}")
        if about.st_size > MOST_BYTES:
            raise InputError(
                f"{path} has {about.st_size:,} bytes, at most {MOST_BYTES:,}; {remedy}"
            )
        return path.read_bytes()
    except (OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        why = error.strerror if isinstance(error, OSError) else error
        raise InputError(f"cannot read {quote(str(path))}: {why}; {remedy}") from error


def _parsed(
    parse: Callable[[], Any], form: str, schema: Schema, source: str | Path, remedy: str
) -> Any:
    try:
        value = parse()
    except UnicodeDecodeError as error:
        raise InputError(
            f"cannot read {source}: it is not UTF-8 at byte {error.start}; {remedy}"
        ) from error
    except RecursionError:
        raise InputError(
            f"cannot read {source}: it nests more than {DEEPEST} levels; {remedy}"
        ) from None
    except (ValueError, TypeError, *_yaml_errors(form)) as error:
        why = " ".join(str(error).split())
        raise InputError(f"cannot read {source} as {form}: {why[:200]}; {remedy}") from error
    check(value, schema, source, remedy)
    return value


def _yaml_errors(form: str) -> tuple[type[Exception], ...]:
    if form != "YAML":
        return ()
    import yaml

    return (yaml.YAMLError,)


def _once(pairs: Iterable[tuple[Any, Any]]) -> dict[Any, Any]:
    made: dict[Any, Any] = {}
    for key, value in pairs:
        if key in made:
            raise ValueError(f"{quote(key)} stands twice in one mapping")
        made[key] = value
    return made


def _finite(word: str) -> float:
    raise ValueError(f"{word} is no number of JSON")
