"""Layers that stand below one another in a file, and the small file that says which they are."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from topkit import measure
from topkit.errors import InputError
from topkit.experiments.bench import kept
from topkit.experiments.capture.capture import Capture
from topkit.testing import REAL_LAYERS, real_tensors


def test_the_packaged_tensors_are_five_layers_of_one_sample() -> None:
    opened = Capture.open(kept.FILE)
    assert opened.samples == [0] and opened.layers == list(REAL_LAYERS) == [1, 8, 15, 22, 29]
    whole = load_file(kept.FILE)
    for at, layer in enumerate(opened.layers):
        one, real = opened.load(0, layer), real_tensors(layer)
        assert one.positions.tolist() == [4094] and one.scaling == real.scaling == 0.125
        for name in ("queries", "keys"):
            assert torch.equal(getattr(one, name), whole[name][at : at + 1])
            assert torch.equal(getattr(one, name).float(), getattr(real, name))
    rows = measure(opened, "exact", 16).table
    assert sorted(set(rows["layer"].to_pylist())) == opened.layers


def write(folder: Path, layers: object, name: str = "mine") -> Path:
    path = folder / f"{name}.safetensors"
    tensors = {
        "queries": torch.randn(2, 4, 1, 8),
        "keys": torch.randn(2, 2, 9, 8),
        "scaling": torch.tensor(0.5),
    }
    save_file(tensors, path)
    if layers is not None:
        (folder / f"{name}.layers.json").write_text(json.dumps(layers))
    return path


def test_without_the_file_beside_it_the_first_dimension_is_the_batch(tmp_path: Path) -> None:
    plain, stacked = write(tmp_path, None, "plain"), write(tmp_path, [7, 3])
    (tmp_path / "plain.json").write_text('{"layers": [7, 3]}')  # which is something else's
    assert (Capture.open(plain).samples, Capture.open(plain).layers) == ([0, 1], [0])
    opened = Capture.open(stacked)
    assert (opened.samples, opened.layers) == ([0], [3, 7])
    assert torch.equal(opened.load(0, 7).keys, load_file(stacked)["keys"][:1])
    assert opened.load(0, 3).scaling == 0.5
    by_layer = opened.fingerprint
    (tmp_path / "mine.layers.json").unlink()
    assert Capture.open(stacked).fingerprint != by_layer
    with pytest.raises(InputError, match="changed since it was opened"):
        opened.load(0, 3)


@pytest.mark.parametrize(
    ("layers", "said"),
    [
        ([1], r"lists 1 layers; \w+ is \[2"),
        ([1, 2, 3], "lists 3 layers"),
        ([4, 4], "must list each layer once"),
        ([], "must list each layer once"),
        (["1", "2"], "layers.json.*whole"),
        ([1, -2], "layers.json.*whole"),
        ({"layers": [1, 2]}, "layers.json"),
    ],
)
def test_a_list_that_is_none_is_refused(tmp_path: Path, layers: object, said: str) -> None:
    with pytest.raises(InputError, match=said):
        Capture.open(write(tmp_path, layers))


def test_the_tool_writes_what_it_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "tools")
    write_tensors = importlib.import_module("smollm2_tensors").write
    queries = {layer: torch.randn(1, 4, 3, 8).bfloat16() for layer in (2, 5)}
    keys = {layer: torch.randn(1, 2, 9, 8).bfloat16() for layer in (2, 5)}
    source = Capture.from_tensors(queries, keys).save(tmp_path / "capture")
    opened = Capture.open(write_tensors(tmp_path / "capture", tmp_path / "out.safetensors"))
    assert opened.layers == source.layers == [2, 5]
    for layer in (2, 5):
        assert torch.equal(opened.load(0, layer).keys, keys[layer])
        assert torch.equal(opened.load(0, layer).queries, queries[layer][:, :, -1:])
