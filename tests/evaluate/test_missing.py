"""What was asked of a run and is not there, of a task that has a parameter called `task`."""

from __future__ import annotations

from pathlib import Path

from transformers import AutoTokenizer

import topkit
from tiny import READS_REFERENCE, tiny
from topkit.experiments.evaluate.condensed import condensed
from topkit.experiments.evaluate.missing import unfinished
from topkit.experiments.model.load import REFERENCE
from topkit.experiments.runs import run_file
from topkit.experiments.tasks import make_task


def test_nothing_is_missing_of_a_whole_run(tmp_path: Path) -> None:
    """RULER's own has a parameter called `task`: it is not taken for the name."""
    name = "ruler:task=niah_single_1,form=plain,tokens=2"
    model = tiny("llama", **{**READS_REFERENCE, "max_position_embeddings": 1024})
    tokenizer = AutoTokenizer.from_pretrained(REFERENCE)
    topkit.evaluate(model, make_task(name), 300, 2, "exact", 4, out=tmp_path, tokenizer=tokenizer, observe=False)  # fmt: skip
    described = run_file.read(tmp_path)
    assert described is not None
    rows = condensed(tmp_path)[0]
    assert unfinished([described], rows) == []
    (line,) = unfinished([described], rows.filter([x == 0 for x in rows["haystack"].to_pylist()]))
    assert "1 of 2 haystacks lack rows (1)" in line
