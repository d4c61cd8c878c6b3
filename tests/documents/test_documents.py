"""Documents that do not fit their schema: one line with the file, the place, what was expected and what came."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from topkit.documents import (
    SHA256,
    FileName,
    Number,
    OneOf,
    Prose,
    Text,
    Whole,
    check,
    parse_json,
    read_json,
    read_yaml,
)
from topkit.errors import InputError

SCHEMA: dict[Any, Any] = {
    "name": FileName(),
    "seed": Whole(),
    "share?": Number(0, 1),
    "rope?": OneOf("half", "interleaved"),
    "gpu?": str | None,
    "between?": (Number(), Number()),
    "files?": [{"bytes": Whole(1), "sha256?": SHA256}],
    "versions?": {str: str},
    "prompt?": Prose,
    "word?": Text("[a-z]+", "a word"),
    "more?": object,
    "yes?": bool,
}
LEAST = {"name": "a.json", "seed": 0}


def line(text: str | bytes, schema: Any = SCHEMA) -> str:
    with pytest.raises(InputError) as caught:
        parse_json(text, schema, "x.json", "mend it")
    said = str(caught.value)
    assert said.startswith(("x.json", "cannot read x.json")) and said.endswith("; mend it")
    assert "\n" not in said and len(said) < 400
    return said


def test_what_fits_is_given_back():
    whole = {
        **LEAST,
        "share": 1,
        "rope": "half",
        "gpu": None,
        "between": [0.5, 2],
        "files": [{"bytes": 1, "sha256": "0" * 64, "later": {"added": [1]}}],
        "versions": {"topkit": "0.2"},
        "prompt": "any \0 character",
        "word": "abc",
        "more": {"of": [None, 1.5, "x"]},
        "yes": True,
        "unknown": 1,
    }
    assert parse_json(json.dumps(whole), SCHEMA, "x.json", "mend it") == whole


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"seed": "0"}, "seed must be a whole number of at least 0; got '0'"),
        ({"seed": True}, "seed must be a whole number of at least 0; got True"),
        ({"seed": 1.0}, "seed must be a whole number"),
        ({"seed": -1}, "seed must be a whole number of at least 0; got -1"),
        ({"seed": 2**63}, "seed must be a number of 64 bits"),
        ({"share": 1.5}, "share must be a number of at least 0 and at most 1; got 1.5"),
        ({"rope": "zzz"}, "rope must be 'half' or 'interleaved'; got 'zzz'"),
        ({"gpu": 1}, "gpu must be text or null; got 1"),
        ({"yes": 1}, "yes must be true or false; got 1"),
        ({"between": [1]}, "between must be a list of 2; got \\[1\\]"),
        ({"between": [1, "x"]}, r"between\[1\] must be a number; got 'x'"),
        ({"files": {}}, "files must be a list; got a mapping of 0"),
        ({"files": [{}]}, r"files\[0\].bytes is missing"),
        ({"files": [1]}, r"files\[0\] must be a mapping; got 1"),
        ({"files": [{"bytes": 1, "sha256": "0"}]}, r"files\[0\].sha256 must be 64 hexadecimal"),
        ({"versions": {"a b": 1}}, r"versions.'a b' must be text; got 1"),
        ({"word": "abc1"}, "word must be a word; got 'abc1'"),
        ({"gpu": "a\0b"}, r"gpu must be text without NUL; got 'a\\x00b'"),
        ({"more": [["\0"]]}, r"more\[0\]\[0\] must be text without NUL"),
        ({"more": {"\0": 1}}, "more must be text without NUL"),
        ({"more": "\ud800"}, r"more must be text in whole characters; got '\\ud800'"),
        ({"more": 10**400}, "more must be a number of 64 bits"),
        ({"name": "../x"}, "name must be the name of a file in this folder, and no path"),
        ({"name": "/etc/passwd"}, "name must be the name of a file"),
        ({"name": ".."}, "name must be the name of a file"),
        ({"name": "é" * 128}, "name must be the name of a file"),
        ({"name": "a\\b"}, "name must be the name of a file"),
    ],
)
def test_what_does_not_fit_is_named_by_its_place(change, says):
    with pytest.raises(InputError, match=says):
        check({**LEAST, **change}, SCHEMA, "x.json", "mend it")
    line(json.dumps({**LEAST, **change}))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "cannot read x.json as JSON"),
        ("{", "cannot read x.json as JSON"),
        ("[]", "it must be a mapping; got []"),
        ("null", "it must be a mapping; got None"),
        ('{"seed": 0, "seed": 1}', "'seed' stands twice in one mapping"),
        ('{"more": NaN}', "NaN is no number"),
        ('{"more": -Infinity}', "-Infinity is no number"),
        ('{"name": "a", "seed": 0, "more": 1e400}', "more must be a finite number; got inf"),
        ('{"more": ' + "1" * 5000 + "}", "cannot read x.json as JSON"),
        ("[" * 100_000, "nests more than 64 levels"),
        (b'{"name": "\xff"}', "it is not UTF-8 at byte 10"),
    ],
)
def test_what_is_no_json_is_said(text, says):
    assert says in line(text)


def test_a_deep_document_is_refused_under_a_schema_that_asks_nothing():
    assert parse_json("[" * 60 + "]" * 60, object, "x", "-") is not None
    assert "nests more than 64 levels" in line("[" * 70 + "]" * 70, object)
    assert "nests more than 64 levels" in line('{"a":' * 900 + "1" + "}" * 900, object)


def test_only_plain_files_are_read(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe")
    long = tmp_path / ("x" * 300)
    for path, says in (
        (tmp_path, "is no plain file; mend it"),
        (tmp_path / "pipe", "is no plain file; mend it"),
        (tmp_path / "absent", "No such file or directory; mend it"),
        (long, "File name too long; mend it"),
        ("a\0b", "embedded null byte; mend it"),
    ):
        for read in (read_json, read_yaml):
            with pytest.raises(InputError, match=says):
                read(path, object, "mend it")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("seed: 1\nseed: 2", "'seed' stands twice"),
        ("a: &x [1]\nb: *x", "may stand for one value"),
        ("a: 2020-13-45", "cannot read .* as YAML"),
        ("a: " + "1" * 5000, "cannot read .* as YAML"),
        ("? [a]\n: 1", "cannot read .* as YAML"),
        ("1.5: 2", "must be a mapping whose names are text; got 1.5"),
        ("a: !!python/object/apply:os.getcwd []", "cannot read .* as YAML"),
        ("a: 'x\0'", "cannot read .* as YAML"),
        ("[" * 5000, "levels"),
        ("a: [", "cannot read .* as YAML"),
        ("a: .inf", "a must be a finite number"),
    ],
)
def test_yaml_is_held_to_the_same(tmp_path: Path, text, says):
    path = tmp_path / "x.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=says) as caught:
        read_yaml(path, {str: object}, "mend it")
    assert "\n" not in str(caught.value)


def test_yaml_gives_values_and_repeats_one(tmp_path: Path):
    path = tmp_path / "x.yaml"
    path.write_text("k: &k 16\nmore: [*k, 1%]\n")
    assert read_yaml(path, {"k": Whole(1), "more": list}, "-") == {"k": 16, "more": [16, "1%"]}


ANY = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(),
    lambda x: st.lists(x) | st.dictionaries(st.text(), x),
)


def refused(call: Any) -> str | None:
    """The one line by which a call is refused; None where it is not."""
    try:
        call()
    except InputError as error:
        return str(error)
    return None


@given(ANY)
def test_any_value_fits_or_is_refused_by_one_line(value):
    for whole in (value, {**LEAST, "more": value}):
        said = refused(lambda whole=whole: check(whole, SCHEMA, "x.json", "mend it"))
        assert said is None or ("\n" not in said and said.endswith("; mend it"))


@given(st.binary() | st.text().map(lambda x: x.encode()))
def test_any_bytes_are_read_or_refused(raw):
    assert "\n" not in (refused(lambda: parse_json(raw, object, "x.json", "mend it")) or "")
