"""The recipe at other sizes: how large they are, both runs in one command, and what is refused."""

from __future__ import annotations

import json
import lzma
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from topkit.errors import InputError
from topkit.experiments.train.recipe import Recipe, new_model
from topkit.experiments.train.sizes import SIZES, recipe_of, train_size
from topkit.experiments.train.train import train_reference

HOW: dict[str, Any] = {"device": "cpu", "workers": 0, "report": lambda line: None}
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    text = (ROOT / "topkit" / "data" / "excerpt.txt").read_text()[:60_000]
    with lzma.open(folder / "books-train.jsonl.xz", "wt") as lines:
        lines.write(json.dumps({"title": "t", "author": "a", "text": text}) + "\n")
    return folder


@pytest.mark.parametrize("size", SIZES)
def test_a_size_is_within_a_tenth_of_its_name(size: str) -> None:
    recipe = recipe_of(size)
    with torch.device("meta"):
        count = sum(p.numel() for p in new_model(recipe).parameters())
    assert 0.9 < count / (int(size[:-1]) * 1e6) < 1.1
    assert recipe.heads % recipe.kv_heads == 0 and recipe.head_dim == 64


def test_the_bundled_model_is_the_first_seed_of_its_size() -> None:
    assert recipe_of("14m") == Recipe() and recipe_of("14m", second=True) == Recipe.second()
    seeds = {recipe_of("14m", n, second).seed for n in range(3) for second in (False, True)}
    assert len(seeds) == 6
    # Schedules keep their shape.
    assert recipe_of("150m").last / recipe_of("150m").peak == pytest.approx(6e-5 / 3e-3)
    with pytest.raises(InputError, match="unknown size '15m'"):
        recipe_of("15m")


@pytest.mark.slow
def test_both_runs_go_on_to_the_same_model(corpus: Path, tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert train_size("4m", corpus, whole, tiny=True, **HOW)
    for _ in range(Recipe.tiny().steps + 2):
        assert not train_size("4m", corpus, parts, tiny=True, stop_after=0, **HOW)
    assert (parts / "first" / "model").is_dir() and not (
        parts / "model" / "model.safetensors"
    ).exists()
    assert train_size("4m", corpus, parts, tiny=True, **HOW)
    one, other = (load_file(out / "model" / "model.safetensors") for out in (whole, parts))
    assert all(torch.equal(x, other[name]) for name, x in one.items())


def test_a_model_of_another_shape_is_no_beginning(corpus: Path, tmp_path: Path) -> None:
    assert train_reference(corpus, tmp_path / "a", recipe=Recipe.tiny(), **HOW)
    wider = replace(Recipe.tiny(), feed_forward=96)
    with pytest.raises(InputError, match=r"checkpoint of another shape: .* is \(128, 64\) there"):
        train_reference(corpus, tmp_path / "b", recipe=wider, start_from=tmp_path / "a" / "model", **HOW)  # fmt: skip


@pytest.mark.slow
def test_two_processes_come_to_one_processes_weights(corpus: Path, tmp_path: Path) -> None:
    """The same global batch: what differs is the order of sums."""
    command = ["-m", "topkit", "train", "reference", "--size", "4m", "--tiny", "--device", "cpu"]
    command += ["--corpus", str(corpus), "--jobs", "1"]
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    for out, launch in (("one", []), ("two", torchrun)):
        line = [sys.executable, *launch, *command, "--out", str(tmp_path / out)]
        subprocess.run(line, env=env, check=True, timeout=500, capture_output=True)
    ends = [sorted((tmp_path / out / "checkpoints").glob("*.pt"))[-1] for out in ("one", "two")]
    states = [torch.load(path, weights_only=True) for path in ends]
    assert states[0]["step"] == states[1]["step"] == Recipe.tiny().steps
    start = new_model(Recipe.tiny()).state_dict()
    for name, x in states[0]["model"].items():
        moved = (x - start[name]).abs().mean() + 1e-6
        assert (x - states[1]["model"][name]).abs().mean() < 0.05 * moved, name
