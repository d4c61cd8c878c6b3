"""Hostile run folders: run.json, study.json and parts mutated; a row is what was written, or refused by name.

TOPKIT_FUZZ=100 runs a hundred times as many: 1,000 of each kind.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import topkit
from fuzz import TIMES, changed_bytes, changed_json, line_of
from topkit.experiments.runs import folder, manifest, run_file
from topkit.experiments.runs.cell_parts import done
from topkit.experiments.runs.parts import read_table
from topkit.experiments.study.provenance import sentences
from topkit.experiments.study.reading import STUDY, study_of

FILES = 10 * TIMES


def made() -> topkit.Capture:
    g = torch.Generator().manual_seed(0)
    shapes = ((1, 2, 2, 8), (1, 1, 40, 8), (1, 1, 40, 8))
    queries, keys, values = (torch.randn(shape, generator=g) for shape in shapes)
    return topkit.Capture.from_tensors(queries, keys, values)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run")
    topkit.measure(made(), "sign", 4, out=out)
    return out


def rerun(out: Path) -> None:
    topkit.measure(made(), "sign", 4, out=out)


def report(out: Path) -> None:
    """What a report says of a run before it draws."""
    assert list(sentences(folder.require_intact(out)))


READERS: tuple[Callable[[Path], object], ...] = (rerun, report, topkit.verify)


def sealed(content: Any) -> bytes:
    """A run file that a hostile hand gave a right digest."""
    try:
        plain = json.dumps(content, indent=1).encode()
        return json.dumps(
            {**content, "sha256": hashlib.sha256(plain).hexdigest()}, indent=1
        ).encode()
    except (ValueError, TypeError):
        return b"{}"


def test_run_files(run: Path) -> None:
    draw, path = random.Random(4), run / run_file.NAME
    raw = path.read_bytes()
    whole = json.loads(raw)
    del whole["sha256"]
    try:
        for _ in range(FILES):
            path.write_bytes(changed_bytes(draw, raw))
            if path.read_bytes() != raw:
                for read in READERS:
                    said = line_of(lambda read=read: read(run))
                    assert said is not None and str(run) in said
            for read in READERS:
                path.write_bytes(sealed(changed_json(draw, whole)))
                said = line_of(lambda read=read: read(run))
                assert said is None or str(run) in said
    finally:
        path.write_bytes(raw)


def test_study_files(tmp_path: Path) -> None:
    draw, path = random.Random(5), tmp_path / STUDY
    aims = {"reach": 0.9, "exact_between": [0.5, 0.9], "spread": 3}
    whole = {"study": "s", "preset": "quick", "model": "reference", "aims": aims, "left out": "x"}
    raw = json.dumps(whole, indent=1).encode()
    for _ in range(FILES):
        for spoilt in (changed_bytes(draw, raw), json.dumps(changed_json(draw, whole)).encode()):
            path.write_bytes(spoilt)
            said = line_of(lambda: study_of(path))
            assert said is None or str(path) in said


def test_parts_with_flipped_bytes(run: Path) -> None:
    """Whether or not a manifest vouches for them."""
    draw = random.Random(6)
    path = next((run / "fidelity").glob("*.parquet"))
    (listed,) = (run / "fidelity").glob(manifest.FILES)
    raw, entries = path.read_bytes(), listed.read_bytes()
    try:
        for _ in range(FILES):
            spoilt = bytearray(raw)
            for _ in range(draw.choice((1, 1, 8))):
                spoilt[draw.randrange(len(raw))] ^= draw.randint(1, 255)
            path.write_bytes(spoilt)
            if spoilt == raw:
                continue
            for read in READERS:
                said = line_of(lambda read=read: read(run))
                assert said is not None and path.name in said
            for read in (lambda: read_table(run / "fidelity"), lambda: list(done(path.parent))):
                said = line_of(read)
                assert said is None or path.name in said
    finally:
        path.write_bytes(raw)
        listed.write_bytes(entries)
