"""An attached model under lm-evaluation-harness: contexts attend densely, what is scored or said is sparse."""

from __future__ import annotations

import sys
from typing import Any

import torch

from topkit.errors import InputError, extras_named

with extras_named():
    from lm_eval.api.registry import register_model
    from lm_eval.models import huggingface
    from tqdm import tqdm

    from topkit.experiments.decode.attach import Attachment, attach
    from topkit.experiments.model.load import load


# Its registration hides its type.
HFLM: Any = huggingface.HFLM


class AttachedLM(HFLM):
    """A model of lm-evaluation-harness that decodes through an indexer.

    `pretrained`: what `load` takes, or a model at hand, which may be attached already and then
    needs no indexer. `options` are those of the harness's own `hf` model.
    The query that predicts a continuation's first token, and all behind it, read k keys a head; those
    before it attend densely. Requests share a batch where that query stands at the same slot.
    Raises: InputError for what `load` or `attach` refuse.
    """

    def __init__(
        self,
        pretrained: Any,
        indexer: str | None = None,
        k: int | str | None = None,
        *,
        tokenizer: Any = None,
        device: str | None = None,
        dtype: str | None = None,
        **options: Any,
    ) -> None:
        model = pretrained
        if isinstance(pretrained, str):
            # The harness asks for a GPU unless told otherwise, and goes on without.
            place = device if torch.cuda.is_available() else None
            model, own = load(pretrained, place, None if dtype == "auto" else dtype)
            tokenizer = tokenizer or own
        if (indexer is None) != (k is None):
            raise InputError("an indexer needs its k, as indexer=sign,k=64")
        attached = Attachment.of(model) if indexer is None else attach(model, indexer, k or 0)
        self.attachment = attached
        super().__init__(pretrained=model, tokenizer=tokenizer, **options)

    def _loglikelihood_tokens(
        self, requests: list[Any], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:
        by_slot: dict[int, list[int]] = {}
        for place, (_, context, continuation) in enumerate(requests):
            # The harness drops what does not fit on the left, and the last token, which predicts none.
            length = min(len(context) + len(continuation), self.max_length + 1) - 1
            by_slot.setdefault(length - len(continuation), []).append(place)
        answers: dict[int, tuple[float, bool]] = {}
        for slot in tqdm(sorted(by_slot, reverse=True), disable=disable_tqdm):
            places = by_slot[slot]
            some = [requests[place] for place in places]
            with self.attachment.sparse_from(slot):
                part = super()._loglikelihood_tokens(some, True, override_bs)
            answers |= zip(places, part, strict=True)
        return [answers[place] for place in range(len(requests))]

    def _model_generate(self, context: Any, *args: Any, **kwargs: Any) -> Any:
        # Rows are padded on the left: the last token of every prompt stands at the last slot.
        with self.attachment.sparse_from(context.shape[1] - 1):
            return super()._model_generate(context, *args, **kwargs)


register_model("topkit")(AttachedLM)


def main() -> None:
    """The harness's own command line, with the model `topkit`."""
    from lm_eval.__main__ import cli_evaluate

    try:
        cli_evaluate()
    except InputError as error:
        print(f"topkit: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
