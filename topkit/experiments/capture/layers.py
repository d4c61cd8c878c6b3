"""Which layers of a model can be captured, and what they cost: a short pass before the long ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from topkit.errors import InputError
from topkit.experiments.capture.prompts import Passage, numbers
from topkit.experiments.capture.tensors import LayerTensors, estimate_bytes
from topkit.experiments.model.outline import outline
from topkit.experiments.model.own_indexer import own_k
from topkit.experiments.model.record import LayerRecord, record

# Tokens of the short pass.
SURVEYED = 16


@dataclass(frozen=True)
class Survey:
    """The layers that are captured: their modules, short tensors of each; and those left out.

    `outline` is the model in one line; own_k, how many keys its own indexer lets a query attend to.
    """

    modules: dict[int, nn.Module]
    examples: dict[int, LayerTensors]
    skipped: list[dict[str, Any]]
    hidden: bool
    outline: str
    own_k: int | None = None

    def bytes(self, passage: Passage) -> int:
        """Bytes of the files of a passage."""
        lengths = len(passage.ids), len(passage.positions), passage.prefill
        return sum(estimate_bytes(x, *lengths, own_k=self.own_k) for x in self.examples.values())

    def run(self, model: PreTrainedModel, ids: Sequence[int], at: Tensor) -> dict[int, LayerRecord]:
        """What these layers see of a token sequence."""
        wanted = torch.tensor([list(ids)]), at, sorted(self.modules), self.hidden
        return record(model, *wanted, softmax=True)

    def layers(self) -> list[dict[str, Any]]:
        """What the manifest says of each layer."""
        return [
            {"layer": layer, "scaling": example.scaling}
            for layer, example in sorted(self.examples.items())
        ]


def survey_layers(
    model: PreTrainedModel, passages: Sequence[Passage], choice: str | Sequence[int], hidden: bool
) -> Survey:
    """Survey the layers of a choice: "all", "0,3,5" or numbers; "all" leaves out what cannot be captured.

    Raises: InputError for a model or a layer that cannot be captured (named, with the reason).
    """
    ids = list(passages[0].ids[:SURVEYED])
    at = torch.arange(len(ids))
    records = record(model, torch.tensor([ids]), at, softmax=True)
    reasons = {
        layer: "it does not attend through AttentionInterface"
        for layer in range(model.config.get_text_config().num_hidden_layers)
        if layer not in records
    }
    longest = max(len(passage.ids) for passage in passages)
    for layer, one in records.items():
        if one.window is not None and one.window < longest:
            reasons[layer] = f"it sees a sliding window of {one.window} keys, not all"
    layers = _choose(choice, {*records, *reasons}, reasons, type(model).__name__)
    skipped = [{"layer": layer, "reason": reasons[layer]} for layer in sorted(reasons)]
    line = outline(model, records, set(records) - set(reasons))
    modules = {layer: records[layer].module for layer in layers}
    survey = Survey(modules, {}, skipped, hidden, line, own_k(model))
    for layer, one in survey.run(model, ids, at).items():
        survey.examples[layer] = LayerTensors.of(one, 0, layer, at)
    return survey


def _choose(
    choice: str | Sequence[int], there: set[int], reasons: Mapping[int, str], name: str
) -> list[int]:
    if choice == "all":
        if there == set(reasons):
            raise InputError(f"no layer of {name} can be captured: {next(iter(reasons.values()))}")
        return sorted(there - set(reasons))
    try:
        layers = sorted(set(numbers(choice) if isinstance(choice, str) else choice))
    except ValueError:
        raise InputError(f"layers must be all, or numbers as 0,3,5; got {choice!r}") from None
    for layer in layers:
        if layer not in there:
            raise InputError(f"{name} has no layer {layer}; it has {min(there)} to {max(there)}")
        if layer in reasons:
            raise InputError(f"layer {layer} of {name} cannot be captured: {reasons[layer]}")
    if not layers:
        raise InputError("no layer was chosen; layers must be all, or numbers as 0,3,5")
    return layers
