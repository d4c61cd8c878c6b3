"""Steps that are kept, and streams that are forked, read nothing but what is theirs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tiny import lightning_for, tiny
from topkit.errors import InputError
from topkit.experiments.evaluate.built import Built
from topkit.experiments.evaluate.shared_prefix import prefill
from topkit.experiments.evaluate.stepped import Graphed, token_steps
from topkit.experiments.runs.cells import Cell, needs, parse_cells
from topkit.indexers import exact, quantized

LENGTH, QUESTIONS = 24, 2


@pytest.fixture
def made() -> Any:
    return tiny("llama", num_hidden_layers=2)


def graphed(made: Any, specs: list[str]) -> Graphed:
    cells = [Cell(), *parse_cells(specs, [4, 8], False)]
    prefix = prefill(made, list(range(1, LENGTH + 1)), needs(cells), 1)
    return Graphed(made, Built(prefix, 0), cells, QUESTIONS, LENGTH, LENGTH + 20, "question")


@torch.no_grad()
def test_some_rows_go_on_by_several_tokens_as_among_all(made: Any) -> None:
    steps = graphed(made, ["sign()"])
    dense, stream = steps.streams()
    assert (dense.rows, stream.rows) == (QUESTIONS, 2 * QUESTIONS)
    ids = torch.tensor([[3, 5, 7], [2, 4, 6], [9, 8, 1], [5, 5, 2]])
    every, some = stream.fork(), stream.fork(torch.tensor([1, 3]))
    ours = steps.forward([some], ids[[1, 3]], 3)
    assert torch.equal(ours, steps.forward([every], ids, 3)[[1, 3]])


def test_room_is_counted_without_building_what_others_kept(made: Any, monkeypatch: Any) -> None:
    first, held = graphed(made, ["quest(page_size=4)", "sign()"]), list[int]()
    first.keep()
    monkeypatch.setattr(
        token_steps, "room_for_graphs", lambda _, taken: held.append(taken) or sys.maxsize
    )
    second = graphed(made, ["quantized(dtype='int8')", "exact()"])
    assert set(map(type, second.built._indices)) == {quantized, exact}
    (size,) = (one.size for one in first._kept.values())
    assert set(held) == {size} and size > 0


@torch.no_grad()
def test_steps_serve_the_next_haystack_until_a_file_of_weights_is_another(
    made: Any, tmp_path: Path
) -> None:
    written = Path(lightning_for(tmp_path).split("'")[1])
    file = tmp_path / "own.safetensors"
    file.write_bytes(written.read_bytes())

    def steps() -> Any:
        one = graphed(made, [f"lightning(weights={str(file)!r}, dtype='fp8')"])
        one.keep()
        return one._fixed

    first = steps()
    assert first._read and steps() is first
    file.unlink()
    file.write_bytes(written.read_bytes())
    second = steps()
    assert second is not first and steps() is second
    file.unlink()
    with pytest.raises(InputError, match=r"own\.safetensors"):
        steps()
