"""What an evaluation costs: rows, bytes on disk, and memory, estimated from what is to be run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from transformers import PreTrainedModel

from topkit.experiments.evaluate.setting import Setting
from topkit.experiments.model.record import LayerRecord
from topkit.experiments.runs.cells import Cell, chunks
from topkit.experiments.runs.parts import PART
from topkit.experiments.runs.plan import WITH_TRANSFORMERS
from topkit.experiments.tasks import Prompt

# Bytes on disk: of a question in a cell, with its line of predictions; of a row of fidelity.
ANSWER, JUDGED = 430, 42


@dataclass(frozen=True)
class Size:
    """What a part of an evaluation costs; memory is that of one worker.

    rows: of accuracy. bytes: ANSWER a row, JUDGED a row of fidelity, and PART a file. memory, with T the
    length and q the questions of one batch: WITH_TRANSFORMERS + weights + the prefix's keys
    and values, once for itself and q times with room behind them + a quarter of the keys, as int8 codes
    take, as often for each cell + 8 T^2, the prefill's mask and its copy + the logits of all answers,
    twice in float32.
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
    for prompt in prompts:
        questions = len(prompt.questions)
        rows += haystacks * questions * len(cells)
        if setting.observe:
            each = _answer(prompt) if setting.observe == "rows" else 1
            if setting.sparse_from == "question":
                each += _asked(prompt) if setting.observe == "rows" else bool(_asked(prompt))
            judged += haystacks * questions * len(sparse) * heads * each
        together = min(questions, max(1, setting.rows // len(cells)))
        vocabulary = model.config.get_text_config().vocab_size
        logits = 8 * len(cells) * together * _answer(prompt) * vocabulary
        memory = max(memory, _prefix(prompt.length, records, together, len(sparse)) + logits)
    jobs = len(prompts) * haystacks * len(chunks(cells, setting.rows))
    size = rows * ANSWER + judged * JUDGED + jobs * PART * (2 if judged else 1)
    weights = sum(x.numel() * x.element_size() for x in model.parameters())
    return Size(rows, size, WITH_TRANSFORMERS + weights + memory)


def _answer(prompt: Prompt) -> int:
    """Tokens of the longest answer."""
    return max(len(question.answer_ids) for question in prompt.questions)


def _asked(prompt: Prompt) -> int:
    """Steps of the longest question: its last token's is the answer's."""
    return max(len(question.ids) for question in prompt.questions) - 1


def _prefix(length: int, records: Mapping[int, LayerRecord], together: int, cells: int) -> int:
    """Bytes of a prefix of that length while its questions run: keys, values, indices, and its mask."""
    keys = sum(one.keys[:, :, 0].numel() * one.keys.element_size() for one in records.values())
    values = sum(
        one.values[:, :, 0].numel() * one.values.element_size() for one in records.values()
    )
    return length * (1 + together) * (keys + values + cells * keys // 4) + 8 * length**2
