"""What an index holds is the same of a cell, whatever is asked beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

import topkit
from tiny import READS_REFERENCE, tiny
from topkit.experiments.evaluate.stepped import groups
from topkit.experiments.model.load import REFERENCE
from topkit.experiments.runs.parts import read_table
from topkit.experiments.tasks import make_task

TASK = make_task("kv-recall", questions=2, distractors=2)
RECIPES = ("keep(h2o, sink=1)", "previous(exact)")
FAISS = ("faiss_ivf(nlist=8)", "faiss_sq")
WHERE = ("indexer", "budget", "layer", "steps", "question")


def evaluated(out: Path, specs: Any, ks: Any, batch_size: int) -> tuple[dict, dict]:
    """Bytes by cell, layer and question; and what is said by cell and question."""
    torch.manual_seed(0)
    model = tiny("llama", **{**READS_REFERENCE, "max_position_embeddings": 1024})
    given: Any = {"tokenizer": AutoTokenizer.from_pretrained(REFERENCE), "batch_size": batch_size}
    rows = topkit.evaluate(model, TASK, 240, 1, specs, ks, out=out, **given).to_pylist()
    held = {
        tuple(r[n] for n in WHERE): r["index_bytes"]
        for r in read_table(out / "fidelity").to_pylist()
    }
    return held, {(r["indexer"], r["budget"], r["question"]): (r["said"], r["nll"]) for r in rows}


def apart(tmp_path: Path, specs: Any) -> None:
    """Cells together in one batch, and each question of each cell alone."""
    held, said = evaluated(tmp_path / "together", specs, [4, 40], 64)
    for number, spec in enumerate(specs):
        own, words = evaluated(tmp_path / str(number), [spec], 40, 1)
        assert own and words
        for at, nbytes in own.items():
            assert held[at] == pytest.approx(nbytes), at
        for at, (text, nll) in words.items():
            assert said[at][0] == text and said[at][1] == pytest.approx(nll, abs=1e-4)


@pytest.mark.slow
def test_of_recipes_that_remember(tmp_path: Path) -> None:
    apart(tmp_path, RECIPES)


@pytest.mark.slow
def test_of_indexes_that_rows_share(tmp_path: Path) -> None:
    pytest.importorskip("faiss")
    apart(tmp_path, FAISS)


def test_budgets_in_one_index_are_noticed(tmp_path: Path, monkeypatch: Any) -> None:
    """The mutant: cells of all budgets are rows of one stream."""
    monkeypatch.setattr(groups, "alone", lambda _: False)
    with pytest.raises(AssertionError):
        apart(tmp_path, ["h2o"])
