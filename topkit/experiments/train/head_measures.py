"""How each head attends where a task is asked and answered: its entropy, its sink, what it reads, its mass at k."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor

from topkit.experiments.model.record import LayerRecord, record
from topkit.experiments.tasks import Prompt
from topkit.kernels.topk_attention.reference import products

# Of a prompt's measures, each [layers, heads]: nats; nats over ln n of n visible keys; the weight on slot 0; the
# weight on the answer's own key. `mass` is one of each ratio.
ENTROPY, RELATIVE, SINK, READING = "entropy", "relative entropy", "sink", "reading"
MEASURES = (ENTROPY, RELATIVE, SINK, READING)


def mass_at(ratio: str) -> str:
    """The name of the weight that a head's Top-k holds at a ratio."""
    return f"mass at {ratio}"


@torch.no_grad()
def head_measures(
    model: Any, prompt: Prompt, ratios: Sequence[str]
) -> dict[str, list[list[float]]]:
    """Means over the steps of a prompt's first question and its answer, [layers, heads] each.

    A step's weights are softmax(q k) over all that it sees. `reading`: at the steps that say the answer, the
    weight on that token where the haystack holds the answer; NaN where it does not.
    """
    question = prompt.questions[0]
    ids = [*prompt.ids, *question.ids, *question.answer_ids]
    positions = torch.arange(len(prompt.ids), max(len(ids) - 1, len(prompt.ids) + 1))
    said = len(prompt.ids) + len(question.ids) - 1
    sources = places_of(prompt.ids, question.answer_ids)
    reads = [(said + n - len(prompt.ids), slot) for n, slot in enumerate(sources) if slot >= 0]
    records = record(model, torch.tensor([ids]), positions, purpose="measured")
    layers = [_of_layer(records[n], positions, ratios, reads) for n in sorted(records)]
    return {name: [layer[name] for layer in layers] for name in layers[0]}


def places_of(haystack: Sequence[int], answer: Sequence[int]) -> list[int]:
    """The slot of each token of an answer where the haystack holds it last, -1 for a token that it does not.

    A haystack may cut the answer's first token otherwise; the others are then looked for alone.
    """
    whole = list(haystack)
    for first in range(min(2, len(answer))):
        wanted = list(answer[first:])
        for at in range(len(whole) - len(wanted), -1, -1):
            if whole[at : at + len(wanted)] == wanted:
                return [-1] * first + list(range(at, at + len(wanted)))
    return [-1] * len(answer)


def _of_layer(
    seen: LayerRecord, positions: Tensor, ratios: Sequence[str], reads: Sequence[tuple[int, int]]
) -> dict[str, list[float]]:
    at = positions.to(seen.queries.device)
    scores = seen.scaling * products(seen.queries, seen.keys)[0]
    future = torch.arange(scores.shape[-1], device=at.device) > at[:, None]
    weights = scores.masked_fill(future, float("-inf")).softmax(-1).double()
    entropy = torch.special.entr(weights).sum(-1)
    count = (at + 1).double()
    # One key is certain, whatever the base.
    relative = entropy / count.log().clamp_min(1e-9)
    made = {
        ENTROPY: entropy.mean(-1),
        RELATIVE: relative.mean(-1),
        SINK: weights[..., 0].mean(-1),
        READING: torch.full_like(entropy[:, 0], float("nan")),
    }
    if reads:
        steps, slots = (torch.tensor(x, device=at.device) for x in zip(*reads, strict=True))
        made[READING] = weights[:, steps, slots].mean(-1)
    held = weights.sort(-1, descending=True).values.cumsum(-1)
    for ratio in ratios:
        share = Fraction(ratio.removesuffix("%")) / 100
        kept = (count.long() * share.numerator + share.denominator - 1) // share.denominator
        last = (kept - 1).expand(held.shape[0], -1)[..., None]
        made[mass_at(ratio)] = held.gather(-1, last)[..., 0].mean(-1)
    return {name: values.tolist() for name, values in made.items()}
