"""JSON and YAML from disk, held to a schema: one clear line for whatever does not fit it.

A schema reads as the documentation of its format:

    RUN = {
        "identity": {str: object},                   # any names, any values
        "asked": [dict],                             # a list of mappings
        "seed": Whole(),                             # 0, 1, ...
        "rope": OneOf("half", "interleaved"),
        "aims?": {"between": (Number(0, 1), Number(0, 1))},  # may be absent; a list of just two
        "gpu": str | None,
    }
    run = read_json(folder / "run.json", RUN, "use another folder, or --force")

The last argument says what to do, and ends every error. `parse_json` takes text, `check` a value. Refused
by themselves: a name that stands twice in a mapping, numbers beyond 64 bits, NaN and infinity, NUL but in
`Prose`, half a character, more than 64 levels, and a path that leads to no plain file. Keys that a schema
does not name are passed over: another version may say more.
"""

from topkit.documents.paths import path_of
from topkit.documents.read import parse_json, read_bytes, read_json, read_yaml
from topkit.documents.schema import (
    SHA256,
    FileName,
    Number,
    OneOf,
    Prose,
    Schema,
    Text,
    Whole,
    check,
    is_file_name,
    quote,
)

__all__ = [
    "SHA256",
    "FileName",
    "Number",
    "OneOf",
    "Prose",
    "Schema",
    "Text",
    "Whole",
    "check",
    "is_file_name",
    "parse_json",
    "path_of",
    "quote",
    "read_bytes",
    "read_json",
    "read_yaml",
]
