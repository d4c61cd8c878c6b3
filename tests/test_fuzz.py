"""Hostile texts and files: whatever comes, InputError of one line or a thing that prints and parses back.

TOPKIT_FUZZ=100 runs a hundred times as many: 50,000 specs, 1,000 files of each kind.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fuzz import TIMES, VALUES, WORDS, changed_bytes, changed_json, changed_text, line_of, load_all
from topkit.experiments.capture import files
from topkit.experiments.capture.capture import Capture
from topkit.experiments.capture.manifest import MANIFEST, seal
from topkit.experiments.tasks import OFFICIAL, TASKS, make_task
from topkit.grammar import flat, full, parameters, short
from topkit.indexers import INDEXERS
from topkit.indexers.base import Indexer
from topkit.indexers.budget import parse_budget, parse_budgets
from topkit.indexers.spec import parse

SPECS, FILES = 500 * TIMES, 10 * TIMES


def built(draw: random.Random, known: dict[str, Any]) -> str:
    """A name with some of its own parameters, at any values."""
    name = draw.choice(list(known))
    keys = [*parameters(known[name]), draw.choice(WORDS)]
    chosen = draw.sample(keys, draw.randint(0, min(3, len(keys))))
    values = [f"{key}={draw.choice(WORDS)}" for key in chosen]
    form = draw.choice(("{}({})", "{}:{}", "keep({}({}))"))
    return form.format(name, draw.choice((",", ", ")).join(values))


def require_round_trip(make: Callable[[Any], Any], text: str, forms: Any) -> None:
    thing = make(text)
    for form in forms:
        assert make(form(thing)) == thing, f"{text!r} is printed as {form(thing)!r}"


def written(draw: random.Random, known: dict[str, Any], examples: list[str]) -> str:
    if draw.random() < 0.5:
        return built(draw, known)
    return changed_text(draw, draw.choice(examples))


@pytest.mark.parametrize("seed", range(5))
def test_specs_of_indexers(seed: int):
    draw = random.Random(seed)
    examples = [example for recipe in INDEXERS.values() for example in recipe.examples]
    for _ in range(SPECS // 5):
        text = written(draw, dict(INDEXERS), examples)
        line_of(lambda text=text: require_round_trip(parse, text, (full, short, repr)))


@pytest.mark.parametrize("seed", range(3))
def test_specs_of_tasks(seed: int):
    draw = random.Random(seed)
    known = {**TASKS, **OFFICIAL}
    examples = [
        *(flat(task()) for task in known.values()),
        *("niah-multikey:distractors=4,wording=trained", "niah-multikey(digits=10, depth=0.5)"),
    ]
    for _ in range(SPECS // 3):
        text = written(draw, known, examples)
        line_of(lambda text=text: require_round_trip(make_task, text, (full, flat, short)))


def test_budgets_and_lengths():
    from topkit.cli.values import parse_length, parse_lengths, parse_numbers
    from topkit.experiments.capture.prompts import Passage

    draw = random.Random(0)
    passage = Passage(range(100), range(9))
    for _ in range(SPECS):
        text = changed_text(draw, draw.choice(("16", "1%", "16,32,1%", "4k", "last:32", "every:8")))
        line_of(lambda text=text: require_round_trip(parse_budget, text, (str,)))
        for read in (parse_budgets, parse_length, parse_lengths, parse_numbers, passage.at):
            line_of(lambda read=read, text=text: read(text))
    strange: list[Any] = [*VALUES, math.nan, math.inf, 1j, b"1", {1}, torch.ones(2, 2), object()]
    for value in strange:
        for read in (parse_budget, parse_budgets):
            line_of(lambda read=read, value=value: read(value))
    strange += [object, Indexer, INDEXERS["sign"]]
    for value in strange:
        line_of(lambda value=value: parse(value))


@pytest.fixture(scope="module")
def capture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("capture")
    make = torch.Generator().manual_seed(0)
    queries = torch.randn(2, 2, 2, 3, 4, generator=make)
    keys, values = torch.randn(2, 2, 2, 1, 9, 4, generator=make)
    Capture.from_tensors(queries, keys, values).save(folder)
    return folder


def test_manifests(capture: Path):
    draw = random.Random(1)
    path = capture / MANIFEST
    raw = path.read_bytes()
    whole = json.loads(raw)
    del whole["sha256"]
    try:
        for _ in range(FILES):
            path.write_bytes(changed_bytes(draw, raw))
            assert path.read_bytes() == raw or line_of(lambda: load_all(capture)) is not None
            path.write_bytes(seal(changed_json(draw, whole)))
            said = line_of(lambda: load_all(capture))
            assert said is None or str(capture) in said
    finally:
        path.write_bytes(raw)


def test_files_that_a_manifest_vouches_for(capture: Path):
    draw = random.Random(2)
    manifest, path = capture / MANIFEST, capture / files.file_name(1, 0)
    sealed, raw = manifest.read_bytes(), path.read_bytes()
    try:
        for _ in range(FILES):
            spoilt = changed_bytes(draw, raw) if draw.random() < 0.3 else spoilt_header(draw, raw)
            path.write_bytes(spoilt)
            held = json.loads(sealed)
            del held["sha256"]
            held["files"][2] |= {"bytes": len(spoilt), "sha256": files.digest_blocks([spoilt])}
            assert held["files"][2]["name"] == path.name
            manifest.write_bytes(seal(held))
            said = line_of(lambda: load_all(capture))
            assert said is None or path.name in said
    finally:
        manifest.write_bytes(sealed)
        path.write_bytes(raw)


def spoilt_header(draw: random.Random, raw: bytes) -> bytes:
    """A safetensors file whose header says something else."""
    end = 8 + int.from_bytes(raw[:8], "little")
    header = changed_json(draw, json.loads(raw[8:end]))
    if draw.random() < 0.5:
        for entry in header.values():
            if isinstance(entry, dict) and draw.random() < 0.3:
                entry["dtype"] = draw.choice(
                    ("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0", "F4", "I16", "U16", "F16",
                     "BF16", "I32", "U32", "F32", "C64", "F64", "I64", "U64", "F6_E2M3")
                )  # fmt: skip
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + raw[end:]


def test_plain_safetensors(capture: Path, tmp_path: Path):
    draw = random.Random(3)
    raw = (capture / files.file_name(0, 0)).read_bytes()
    path = tmp_path / "own.safetensors"
    for _ in range(FILES):
        change = draw.choice((changed_bytes, spoilt_header))
        path.write_bytes(change(draw, raw))
        said = line_of(lambda: load_all(path))
        assert said is None or path.name in said
