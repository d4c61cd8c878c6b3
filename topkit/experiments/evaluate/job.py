"""One job: a haystack of a task, run through some cells."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import torch

from topkit.experiments.evaluate.accuracy_rows import SCHEMA, accuracy_rows
from topkit.experiments.evaluate.answers import Haystack
from topkit.experiments.evaluate.gpu_share import hold_to
from topkit.experiments.evaluate.identity import identity_of
from topkit.experiments.evaluate.setting import Setting
from topkit.experiments.model.load import load_once
from topkit.experiments.runs.cell_parts import part_name, with_cells, write_rows
from topkit.experiments.runs.cells import Cell
from topkit.experiments.runs.fidelity_rows import table as fidelity_table
from topkit.experiments.runs.heap import freed_memory_kept
from topkit.experiments.tasks import Haystack as Text
from topkit.experiments.tasks import Prompt, Task, task_name
from topkit.experiments.tasks import prompt as make_prompt
from topkit.indexers.noise import seed_of


@dataclass(frozen=True)
class Piece:
    """One job's share: a haystack of a task, and some cells, in their order."""

    task: Task
    length: int
    sample: int
    cells: tuple[Cell, ...]
    name: str

    @property
    def part(self) -> str:
        """The name of the parts that hold its rows; that of the haystack stands first."""
        return part_name(self.name, self.cells)


@freed_memory_kept()
def run_job(setting: Setting, piece: Piece, loaded: tuple | None = None) -> None:
    """Compute one piece and write its parts; accuracy last, as it marks the piece as done."""
    if setting.threads is not None:
        torch.set_num_threads(setting.threads)
    model, tokenizer = loaded or load_once(setting.model, setting.device, setting.dtype)
    hold_to(setting.memory, model.device)
    prompt = prompt_of(setting, piece.task, piece.length, piece.sample, tokenizer)
    haystack = Haystack(
        model,
        prompt,
        piece.cells,
        tokenizer=tokenizer,
        context=piece.length,
        seed=seed_of(setting.seed, task_name(piece.task), piece.length, piece.sample),
        observe=setting.observe,
        shadow=setting.shadow,
    )
    answers = haystack.answers(setting.sparse_from, setting.rows)
    constants = {
        "task": task_name(piece.task),
        "length": piece.length,
        "haystack": piece.sample,
        "sparse_from": setting.sparse_from,
    }
    dense = answers[Cell()]
    rows = [
        row
        for cell in piece.cells
        for row in accuracy_rows(
            prompt, constants, cell, answers[cell], dense, piece.length, haystack.stops
        )
    ]
    identity = identity_of(setting, model, tokenizer)
    recipes = [cell.indexer for cell in piece.cells if cell.indexer is not None]
    things = [piece.task, *recipes]
    if haystack.fidelity:
        fidelity = fidelity_table("evaluate", haystack.fidelity, **constants, sample=piece.sample)
        write_rows(setting.out, setting.run, "fidelity", piece.part, fidelity, things, identity)
    table = with_cells(pa.Table.from_pylist(rows, SCHEMA), piece.cells)
    write_rows(setting.out, setting.run, "accuracy", piece.part, table, things, identity)


def prompt_of(setting: Setting, task: Task, length: int, sample: int, tokenizer: Any) -> Prompt:
    text = None if setting.text is None else Text.of_file(setting.text)
    return make_prompt(task, tokenizer, length, sample, seed=setting.seed, haystack=text)
