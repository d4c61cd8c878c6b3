"""What an evaluation takes: rows, bytes on disk, and memory, estimated from what is to be run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from transformers import PreTrainedModel

from topkit.experiments.evaluate.job import Setting
from topkit.experiments.model.record import Seen
from topkit.experiments.runs.cells import Cell
from topkit.experiments.runs.plan import PROCESS
from topkit.experiments.tasks import Prompt

# Bytes on disk: of a question in a cell, with its line of predictions; of a row of fidelity.
ANSWER, JUDGED = 500, 90


@dataclass(frozen=True)
class Size:
    """rows: of accuracy; bytes: ANSWER a row, and JUDGED a row of fidelity; memory: of one worker.

    memory = PROCESS + weights + the prefix's keys and values once for itself and once a question asked
    together + keys once more for each recipe (its index) + logits of all answers, twice in float32.
    """

    rows: int
    bytes: int
    memory: int


def size_of(
    model: PreTrainedModel,
    seen: Mapping[int, Seen],
    prompts: Sequence[Prompt],
    haystacks: int,
    cells: Sequence[Cell],
    setting: Setting,
) -> Size:
    """The size of a part whose first prompts of each task and length are `prompts`.

    seen: what attention sees in a short pass of the model, by layer.
    """
    rows = judged = memory = 0
    sparse = [cell for cell in cells if cell.indexer is not None]
    heads = sum(one.queries.shape[1] for one in seen.values())
    for prompt in prompts:
        questions = len(prompt.questions)
        tokens = max(len(question.answer_ids) for question in prompt.questions)
        rows += haystacks * questions * len(cells)
        if setting.observe:
            each = tokens if setting.observe == "rows" else 1
            judged += haystacks * questions * len(sparse) * heads * each
        together = min(questions, max(1, setting.rows // len(cells)))
        recipes = len({cell.indexer for cell in sparse})
        keys, values = _bytes_per_token(seen)
        prefix = prompt.length * ((keys + values) * (1 + together) + keys * recipes)
        vocabulary = model.config.get_text_config().vocab_size
        memory = max(memory, prefix + 8 * len(cells) * together * tokens * vocabulary)
    weights = sum(x.numel() * x.element_size() for x in model.parameters())
    return Size(rows, rows * ANSWER + judged * JUDGED, PROCESS + weights + memory)


def _bytes_per_token(seen: Mapping[int, Seen]) -> tuple[int, int]:
    """Of keys and of values, over all layers."""
    keys = sum(one.keys[:, :, 0].numel() * one.keys.element_size() for one in seen.values())
    values = sum(one.values[:, :, 0].numel() * one.values.element_size() for one in seen.values())
    return keys, values
