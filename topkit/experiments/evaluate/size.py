"""What an evaluation costs: rows, bytes on disk, and memory, estimated from what is to be run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from transformers import PreTrainedModel

from topkit.experiments.evaluate.gpu_share import rows_within, share_of
from topkit.experiments.evaluate.memory import graphed, memory_of, require_room
from topkit.experiments.evaluate.setting import EACH, OF_ANSWERS, Setting
from topkit.experiments.evaluate.shape import Asked, Shape
from topkit.experiments.model.record import LayerRecord
from topkit.experiments.runs.cells import Cell, chunks
from topkit.experiments.runs.fidelity_rows import TABLES
from topkit.experiments.runs.parts import PART
from topkit.experiments.runs.plan import WITH_TRANSFORMERS
from topkit.experiments.tasks import Prompt
from topkit.fidelity import ANSWER_KEY

# Bytes on disk: of a question in a cell, with its line of predictions; of a row of fidelity.
ANSWER, JUDGED = 430, 42


@dataclass(frozen=True)
class Size:
    """What a part of an evaluation costs; memory is that of one worker.

    rows: of accuracy. bytes: ANSWER a row, JUDGED a row of fidelity, and PART a file. memory:
    WITH_TRANSFORMERS and what `memory_of` says.
    """

    rows: int
    bytes: int
    memory: int


def size_of(
    model: PreTrainedModel,
    records: Mapping[int, LayerRecord],
    prompts: Sequence[Prompt],
    haystacks: int,
    cells: Sequence[Cell],
    setting: Setting,
) -> Size:
    """The size of a part whose first prompts of each task and length are `prompts`.

    records: of the model's layers, from a short pass.
    """
    sparse = [cell for cell in cells if cell.indexer is not None]
    heads = sum(one.queries.shape[1] for one in records.values())
    rows = judged = memory = 0
    shape = _shape(model, records, setting)
    for prompt in prompts:
        questions = len(prompt.questions)
        rows += haystacks * questions * len(cells)
        if setting.observe:
            each = _answer(prompt) if setting.observe in EACH else 1
            if setting.sparse_from == "question" and setting.observe not in OF_ANSWERS:
                each += _asked(prompt) if setting.observe in EACH else bool(_asked(prompt))
            each *= 2 if setting.shadow else 1
            judged += haystacks * questions * len(sparse) * heads * each
        memory = max(memory, memory_of(shape, asked_of(prompt, setting), cells, setting.rows))
    jobs = len(prompts) * haystacks * len(chunks(cells, setting.rows))
    size = rows * ANSWER + judged * JUDGED + jobs * PART * (2 if judged else 1)
    return Size(rows, size, WITH_TRANSFORMERS + memory)


def require_memory(
    model: PreTrainedModel,
    records: Mapping[int, LayerRecord],
    prompts: Sequence[Prompt],
    cells: Sequence[Cell],
    setting: Setting,
) -> None:
    """Refuse what is more than a GPU has in all; what of it is free changes nothing.

    Raises: InputError that says which number of rows fits.
    """
    if model.device.type != "cuda":
        return
    device, shape = torch.cuda.get_device_properties(model.device), _shape(model, records, setting)
    for prompt in prompts:
        needs = partial(memory_of, shape, asked_of(prompt, setting), cells)
        require_room(device.total_memory, device.name, needs, setting.rows)


def rows_for(
    model: PreTrainedModel,
    records: Mapping[int, LayerRecord],
    prompts: Sequence[Prompt],
    cells: Sequence[Cell],
    setting: Setting,
) -> int:
    """How many rows a pass has, so that a process keeps to the memory that it is given; it follows from nothing else.

    Raises: InputError where one row is too much.
    """
    if setting.memory is None:
        return setting.rows
    share, rows = share_of(setting.memory, model.device), setting.rows
    shape = _shape(model, records, setting)
    for prompt in prompts:
        asked = asked_of(prompt, setting)
        needs = partial(memory_of, shape, asked, cells)
        rows = rows_within(share, rows, needs, partial(graphed, shape, asked, cells))
    return rows


def _shape(model: PreTrainedModel, records: Mapping[int, LayerRecord], setting: Setting) -> Shape:
    """The shape of a model, on a GPU that is its own as far as a process may take of it."""
    shape = Shape.of(model, records)
    if setting.memory is None or not shape.device:
        return shape
    return replace(shape, device=share_of(setting.memory, model.device), own=True)


def asked_of(prompt: Prompt, setting: Setting) -> Asked:
    """What memory follows from of a prompt."""
    count = len(prompt.questions)
    said = max(prompt.most(number) for number in range(count))
    tail, answer = _asked(prompt) + 1 + said, _answer(prompt)
    return Asked(len(prompt.ids), count, tail, answer, _judged(prompt, setting))


def _judged(prompt: Prompt, setting: Setting) -> int:
    """Numbers that are kept of a row, layer and query head: while a pass lasts of each step, then in tables."""
    if not setting.observe:
        return 0
    steps = _answer(prompt)
    if setting.sparse_from == "question" and setting.observe not in OF_ANSWERS:
        steps += _asked(prompt)
    kept = steps if setting.observe in EACH else 2
    shadow = len(TABLES["evaluate"]) if setting.shadow else 0
    return (steps + kept) * (len(ANSWER_KEY) + shadow)


def _answer(prompt: Prompt) -> int:
    """Tokens of the longest answer."""
    return max(len(question.answer_ids) for question in prompt.questions)


def _asked(prompt: Prompt) -> int:
    """Steps of the longest question: its last token's is the answer's."""
    return max(len(question.ids) for question in prompt.questions) - 1
