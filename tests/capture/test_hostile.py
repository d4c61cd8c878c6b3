"""Captures by somebody who means harm, or whose disk does: one line that names the file."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from fuzz import load_all
from topkit.errors import InputError
from topkit.experiments.capture import files
from topkit.experiments.capture.capture import Capture
from topkit.experiments.capture.manifest import FORMAT, MANIFEST, seal
from topkit.experiments.capture.writer import Writer


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A capture of two samples and two layers."""
    make = torch.Generator().manual_seed(0)
    queries = torch.randn(2, 2, 2, 3, 4, generator=make)
    keys, values = torch.randn(2, 2, 2, 1, 9, 4, generator=make)
    Capture.from_tensors(queries, keys, values).save(tmp_path)
    return tmp_path


def content(folder: Path) -> dict[str, Any]:
    held = json.loads((folder / MANIFEST).read_text())
    del held["sha256"]
    return held


def refused(path: Path, name: str = MANIFEST) -> str:
    """The one line by which a capture is refused, when it is opened or loaded."""
    with pytest.raises(InputError) as caught:
        load_all(path)
    said = str(caught.value)
    assert "\n" not in said and name in said and len(said) < 600, said
    return said


# Manifests that are sealed as topkit seals them, and yet say what no capture can be.
FORGED: list[tuple[str, Any, str]] = [
    ("files[0].name", "../x.safetensors", "the name of a file in this folder, and no path"),
    ("files[0].name", "/etc/hostname", "the name of a file in this folder"),
    ("files[0].name", "a\0b", "NUL"),
    ("files[0].name", "x" * 300, "the name of a file in this folder"),
    ("files[0].name", 7, "the name of a file in this folder"),
    ("files[0].name", files.file_name(0, 1), "a file is listed twice"),
    ("files[0].bytes", "many", "a whole number"),
    ("files[0].bytes", -1, "a whole number"),
    ("files[0].bytes", 10**30, "64 bits"),
    ("files[0].sha256", 0, "64 hexadecimal digits"),
    ("files[0].layer", True, "a whole number"),
    ("files[0].layer", 5, "one of each sample and layer"),
    ("files[0].sample", 5, "one of each sample and layer"),
    ("files", {}, "files must be a list"),
    ("files", [], "one of each sample and layer"),
    ("samples", None, "samples must be a list"),
    ("samples[0]", 0, "a mapping"),
    ("samples[0].tokens", 10**12, "9 keys"),
    ("samples[0].tokens", 0, "at least 1"),
    ("samples[0].positions", [], "must ascend within its 9 tokens"),
    ("samples[0].positions", [8, 7], "must ascend within its 9 tokens"),
    ("samples[0].positions", [0, 1, 2], "queries at"),
    ("samples[0].positions", [9], "must ascend within its 9 tokens"),
    ("samples[0].positions", "678", "a list"),
    ("samples[1].sample", 0, "a sample is listed twice"),
    ("layers[0].scaling", "x", "a number"),
    ("layers[0].layer", 9, "layers must be those of the files"),
    ("origin", [], "a mapping"),
    ("origin.model", "\ud800", "whole characters"),
    ("version", 2, "read it with the topkit it is from"),
    ("version", True, "version must be 1; got True"),
]


def change(held: Any, place: str, value: Any) -> None:
    *steps, last = place.replace("[", ".").replace("]", "").split(".")
    for step in steps:
        held = held[int(step) if step.isdecimal() else step]
    held[int(last) if last.isdecimal() else last] = value


@pytest.mark.parametrize(("place", "value", "says"), FORGED)
def test_a_forged_manifest_is_refused(folder: Path, place: str, value: Any, says: str):
    held = content(folder)
    change(held, place, value)
    (folder / MANIFEST).write_bytes(seal(held))
    assert says in refused(folder, "")


@pytest.mark.parametrize("key", ["format", "origin", "samples", "files"])
def test_a_missing_key_is_named(folder: Path, key: str):
    held = content(folder)
    del held[key]
    (folder / MANIFEST).write_bytes(seal(held))
    assert f"{key} is missing" in refused(folder) or key == "format"


@pytest.mark.parametrize(
    "raw",
    [b"", b"\xff\xfe", b"null", b"[" * 100_000, b'{"a": 1, "a": 2}', b'{"a": 1e999}', b"1" * 9999],
)
def test_what_is_no_manifest_is_refused(folder: Path, raw: bytes):
    (folder / MANIFEST).write_bytes(raw)
    assert refused(folder).endswith("; capture again with --force")


def test_files_stand_in_their_folder(folder: Path, tmp_path_factory: pytest.TempPathFactory):
    outside = tmp_path_factory.mktemp("outside")
    path = folder / files.file_name(0, 0)
    path.rename(outside / path.name)
    path.symlink_to(outside / path.name)
    assert "copy it there" in refused(folder, path.name)
    path.unlink()
    path.mkdir()
    assert "copy it there" in refused(folder, path.name)
    path.rmdir()
    os.mkfifo(path)  # reading would wait for ever
    assert "copy it there" in refused(folder, path.name)
    path.unlink()
    (outside / path.name).rename(path)
    Capture.open(folder)
    (folder / MANIFEST).rename(outside / MANIFEST)
    (folder / MANIFEST).symlink_to(outside / MANIFEST)
    assert "copy it there" in refused(folder)


def test_a_folder_may_be_reached_through_a_link(folder: Path, tmp_path_factory):
    link = tmp_path_factory.mktemp("links") / "capture"
    link.symlink_to(folder)
    assert Capture.open(link).samples == [0, 1]


# Tensors of a file that is vouched for, and that no attention saw.
SPOILT: list[tuple[str, Any, str]] = [
    ("queries", lambda x: x.double(), "queries is torch.float64; expected float32"),
    ("queries", lambda x: x.to(torch.float8_e4m3fn), "queries is torch.float8_e4m3fn"),
    ("keys", lambda x: x.long(), "keys is torch.int64"),
    ("keys", lambda x: x[..., :3].contiguous(), "must have D = 4"),
    ("keys", lambda x: x[0].contiguous(), "keys must be [1, Hk, T, D]"),
    ("keys", lambda x: x[:, :, :0].contiguous(), "T > 0"),
    ("keys", lambda x: x.clone().fill_(torch.nan), "keys hold NaN or infinity"),
    ("values", lambda x: x.clone().fill_(torch.inf), "values hold NaN or infinity"),
    ("positions", lambda x: x.float(), "positions is torch.float32; expected int64"),
    ("positions", lambda x: x + 5, "positions must ascend within the 9 keys"),
    ("positions", lambda x: x - 1, "where the manifest says 9 and [6, 7, 8]"),
    ("positions", lambda x: x[None].contiguous(), "positions must be [Tq]"),
    ("scaling", lambda x: x.repeat(2), "scaling must be one number"),
    ("scaling", lambda x: x.long(), "scaling must be one number; got torch.int64"),
    ("scaling", lambda x: -x, "scaling must be positive"),
    ("scaling", None, "lacks scaling"),
    ("queries", None, "lacks queries"),
    ("colour", lambda x: torch.ones(1), "holds 'colour'"),
    ("rope_cos", lambda x: torch.ones(1, 9, 2), "rope_cos and rope_sin come together"),
]


@pytest.mark.parametrize(("name", "spoil", "says"), SPOILT)
def test_tensors_that_no_attention_saw_are_refused_by_their_file(folder, name, spoil, says):
    path = folder / files.file_name(0, 1)
    tensors = files.read_tensors(path)
    tensors = {n: x.clone() for n, x in tensors.items()}
    spoilt = spoil(tensors.get(name)) if spoil else None
    tensors = {n: x for n, x in {**tensors, name: spoilt}.items() if x is not None}
    save_file(tensors, path)
    held = content(folder)
    entry = held["files"][1]
    raw = path.read_bytes()
    entry |= {"bytes": len(raw), "sha256": files.digest_blocks([raw])}
    (folder / MANIFEST).write_bytes(seal(held))
    assert says in refused(folder, path.name)


@pytest.mark.parametrize(
    ("name", "tensor", "says"),
    [
        ("keys", torch.full((1, 9, 4), torch.nan), "keys hold NaN"),
        ("keys", torch.ones(1, 9, 4).to(torch.float8_e5m2), "keys must be a floating-point"),
        ("keys", torch.ones(1, 9, 4, dtype=torch.bool), "keys must be a floating-point"),
        ("positions", torch.tensor([0.5, 1, 2]), "positions must be whole numbers"),
        ("positions", torch.tensor([torch.nan, 1, 2]), "positions must be whole numbers"),
        ("positions", torch.tensor([True, True, True]), "positions must be whole numbers"),
        ("lengths", torch.tensor([10]), "lengths must be 1 numbers from 1 to 9"),
        ("lengths", torch.tensor([2**63 - 1]), "lengths must be 1 numbers from 1 to 9"),
        ("scaling", torch.tensor([1.0, 2.0]), "scaling must be one number"),
        ("scaling", torch.tensor(torch.nan), "scaling must be positive"),
    ],
)
def test_a_plain_file_that_does_not_do_is_named(tmp_path: Path, name, tensor, says):
    path = tmp_path / "own.safetensors"
    tensors = {"queries": torch.ones(2, 3, 4), "keys": torch.ones(1, 9, 4)}
    save_file({**tensors, name: tensor}, path)
    assert says in refused(path, path.name)


HEADERS = [
    b'{"queries": {"dtype": "F32", "shape": [99999999999], "data_offsets": [0, 8]}}',
    b'{"queries": {"dtype": "F32", "shape": [2], "data_offsets": [0, 99999999]}}',
    b'{"queries": {"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]}}',
    b'{"queries": {"dtype": "Z9", "shape": [2], "data_offsets": [0, 8]}}',
    b'{"queries": {"dtype": "F32", "shape": [2], "data_offsets": [4, 8]}}',
    b'{"queries": 1}',
    b"[" * 2000,
    b"\xff\xff",
    b"{}",
]


@pytest.mark.parametrize("header", HEADERS)
@pytest.mark.parametrize("length", [None, 2**63, 0])
def test_a_hostile_header_is_refused_by_name(tmp_path: Path, header: bytes, length: int | None):
    path = tmp_path / "own.safetensors"
    size = len(header) if length is None else length
    path.write_bytes(size.to_bytes(8, "little") + header + bytes(8))
    refused(path, path.name)


def test_paths_that_are_none(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path / ("x" * 300), tmp_path / "nowhere", "a\0b"):
        with pytest.raises(InputError):
            Capture.open(path)


class Counted(dict[str, Any]):
    """A manifest's entry that counts how often it is read."""

    reads = 0

    def __getitem__(self, key: str) -> Any:
        Counted.reads += 1
        return super().__getitem__(key)


def many(count: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    records = [{"sample": n, "tokens": 9, "positions": [8]} for n in range(count)]
    entries = [
        {"sample": n, "layer": 0, "name": files.file_name(n, 0), "bytes": 1, "sha256": "0" * 64}
        for n in range(count)
    ]
    return records, entries


@pytest.mark.slow
def test_every_file_of_a_large_capture_is_looked_up_once(tmp_path: Path, monkeypatch):
    """Calls are counted: ten times the files, ten times the calls."""
    looked: list[Path] = []
    monkeypatch.setattr(files, "verify_file", lambda folder, entry: looked.append(folder))
    counts = []
    for count in (1000, 10_000):
        records, entries = many(count)
        sealed = {**FORMAT, "origin": {}, "samples": records, "files": entries}
        (tmp_path / MANIFEST).write_bytes(seal(sealed))
        looked.clear()
        capture = Capture.open(tmp_path)
        assert len(looked) == count
        held = {**capture.manifest, "files": [Counted(e) for e in capture.manifest["files"]]}
        Counted.reads, capture = 0, Capture(held)
        for sample in capture.samples:
            capture.only(sample, 0)
        counts.append(Counted.reads)
    assert counts[1] == 10 * counts[0]


def test_a_resumed_capture_looks_once_at_each_file(tmp_path: Path, monkeypatch):
    records, entries = many(300)
    for record, entry in zip(records, entries, strict=True):
        one = {**FORMAT, "origin": {}, "samples": [record], "files": [entry]}
        (tmp_path / f"sample-{record['sample']:05d}.json").write_bytes(seal(one))
        (tmp_path / entry["name"]).write_bytes(b"x")
    writer = Writer(tmp_path, {}, range(300))
    calls: list[Path] = []
    lstat = Path.lstat
    monkeypatch.setattr(Path, "lstat", lambda self: calls.append(self) or lstat(self))
    monkeypatch.setattr(Path, "glob", lambda *_: pytest.fail("the folder is not listed anew"))
    assert all(writer.lists(record) for record in records)
    assert len(calls) == 300


def test_a_job_carries_its_own_layer_alone(folder: Path):
    capture = Capture.open(folder)
    part = capture.only(1, 1)
    assert part.load(1, 1).keys.equal(capture.load(1, 1).keys)
    assert (part.samples, part.layers) == ([1], [1])
    with pytest.raises(InputError, match="no sample 0, layer 0"):
        part.load(0, 0)
    with pytest.raises(InputError, match="no sample 7, layer 0"):
        capture.only(7, 0)
    memory = Capture.from_tensors(torch.ones(50, 1, 1, 4), torch.ones(50, 1, 99, 4))
    assert len(pickle.dumps(memory.only(0, 0))) < len(pickle.dumps(memory)) / 20
