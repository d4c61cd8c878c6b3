"""Whether a shared prefix and rows behind it give a model's own logits: tried before a run begins."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedModel

from topkit.errors import InputError
from topkit.experiments.evaluate.built import Built
from topkit.experiments.evaluate.shared_prefix import forward, prefill
from topkit.experiments.runs.cells import Cell
from topkit.indexers.budget import UNCAPPED
from topkit.indexers.native import native

# Tokens of a short trial, and how many of them come behind the prefix.
SHORT, TAIL = 64, 16
# Lengths in a model's config beyond which it attends otherwise.
TURNS = ("sliding_window", "attention_chunk_size", "floor_scale", "index_topk")


def require_same(model: PreTrainedModel, longest: int) -> None:
    """Refuse a model whose logits are not those that `forward` gives behind `prefill`.

    Tried on random tokens: on a short sequence, and across each length below `longest` at which the
    config makes its attention change.
    Raises: InputError naming the model, and why it cannot be evaluated.
    """
    name, config = type(model).__name__, model.config.get_text_config()
    drawn = torch.Generator().manual_seed(0)
    ids = torch.randint(config.vocab_size, (1, max(longest, TAIL + 1)), generator=drawn)
    turns = [getattr(config, turn, None) or longest for turn in TURNS]
    bound = max(1e-3, 16 * torch.finfo(model.dtype).eps)
    for length in sorted({SHORT, *(max(SHORT, n + TAIL // 2) for n in turns if n < longest)}):
        tried = ids[:, :length].to(model.device)
        try:
            apart = _apart(model, tried)
        except InputError as error:
            raise InputError(f"{name} cannot be evaluated: {error}") from None
        if apart > bound:
            raise InputError(
                f"{name} cannot be evaluated: over {tried.shape[1]} tokens attention behind a "
                f"prefix gives logits that are {apart:.1e} off its own (at most {bound:.1e} is "
                "rounding); it attends in another way, or remembers more than keys and values"
            )


@torch.no_grad()
def _apart(model: PreTrainedModel, ids: Tensor) -> float:
    """How far the logits behind a prefix are from the model's own (relative L2)."""
    prefix = prefill(model, ids[0, :-TAIL].tolist(), question=TAIL)
    listed = any(one.listed for one in prefix.values())
    cell = Cell(native(), UNCAPPED) if listed else Cell()
    stream = Built(prefix, 0).stream([cell], 1, len(ids[0]))
    logits = forward(model, prefix, [stream], ids[:, -TAIL:], TAIL, prompt=len(ids[0]))
    training = model.training
    own = model.eval()(input_ids=ids, use_cache=False, logits_to_keep=TAIL).logits.float()
    model.train(training)
    return float((logits.float() - own).norm() / own.norm())
