"""All that the rows of an evaluation depend on, beside task, length, sample and cell."""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

from transformers import PreTrainedModel

import topkit
from topkit.experiments.evaluate.setting import Setting
from topkit.experiments.model.digests import config_digest, tokenizer_digest, weights_digest
from topkit.experiments.model.load import origin_of
from topkit.experiments.model.own_indexer import own_identity
from topkit.experiments.runs.parts import digest
from topkit.experiments.tasks import Haystack as Text

# The digests of a model and its tokenizer, and the run whose jobs took them: once a run in each process.
_OF_RUN: WeakKeyDictionary[PreTrainedModel, tuple[str, dict[str, str]]] = WeakKeyDictionary()


def identity_of(setting: Setting, model: PreTrainedModel, tokenizer: Any) -> dict[str, Any]:
    """The identity of a run, from its model, tokenizer and text as this process has them."""
    return {
        **_digests(setting.run, model, tokenizer),
        **origin_of(model),
        **own_identity(model),
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": model.device.type,
        "seed": setting.seed,
        # Sums over batches of another shape round otherwise, and close scores then change places.
        "batch_size": setting.rows,
        "text": "" if setting.text is None else digest(Text.of_file(setting.text).sentences),
        # Else the same accuracy, observed in two ways, would be in the table twice.
        "observe": setting.observe,
        # Runs without are as they were before there was any.
        **({"shadow": True} if setting.shadow else {}),
        "topkit": topkit.__version__,
    }


def _digests(run: str, model: PreTrainedModel, tokenizer: Any) -> dict[str, str]:
    """Of a plan, which has no run yet, always anew."""
    there = _OF_RUN.get(model)
    if run and there is not None and there[0] == run:
        return there[1]
    digests = {
        "weights": weights_digest(model),
        "config": config_digest(model),
        "tokenizer": tokenizer_digest(tokenizer),
    }
    _OF_RUN[model] = run, digests
    return digests
