"""What SmolLM2's attention and keys are like, and which of the heaviest keys a list has."""

from __future__ import annotations

import torch
from torch import Tensor

from papers.data import LENGTH, Data, layers_of
from papers.laws import step_of
from papers.ours import Ours, mean_of, share_of
from topkit.experiments.capture.capture import LayerTensors
from topkit.experiments.measure.replay import selected
from topkit.indexers.base import Indexer
from topkit.indexers.loki import loki
from topkit.indexers.quest import quest
from topkit.indexers.retroinfer import retroinfer


def weights_of(seen: LayerTensors) -> Tensor:
    """The attention weights [Hq, Tq, T], 0 where a key is not seen."""
    groups = seen.queries.shape[1] // seen.keys.shape[1]
    keys = seen.keys[0].repeat_interleave(groups, 0)
    scores = seen.scaling * seen.queries[0] @ keys.mT
    later = torch.arange(keys.shape[1]) > seen.positions[:, None]
    return scores.masked_fill(later, -torch.inf).softmax(-1)


def found_of(seen: LayerTensors, recipe: Indexer, k: int, heaviest: int) -> float:
    """Which share of each query's heaviest keys a recipe's list of k has."""
    chosen = selected(seen, recipe, [k], 0, {}, None)[0][k].indices[0]
    weights = weights_of(seen)
    chosen = chosen.repeat_interleave(len(weights) // len(chosen), 0)
    # What is none falls behind the last key.
    held = torch.zeros(*weights.shape[:2], weights.shape[2] + 1, dtype=torch.bool)
    held.scatter_(-1, chosen.where(chosen >= 0, weights.shape[2]), True)
    return float(held.gather(-1, weights.topk(heaviest).indices).double().mean())


def streaming_llm_sink(data: Data) -> Ours:
    first = [float(weights_of(seen)[:, -1, 0].mean()) for seen in layers_of(data.every)]
    above = first[2:]
    return share_of(sum(weight > 0.5 for weight in above), len(above))


def h2o_sparsity(data: Data) -> Ours:
    sparse = 0
    for seen in layers_of(data.every):
        weights = weights_of(seen)
        there = torch.arange(weights.shape[2]) <= seen.positions[:, None]
        low = (weights < 0.01 * weights.amax(-1, keepdim=True)) & there
        sparse += float((low.sum(-1) / there.sum(-1)).mean()) > 0.95
    return share_of(sparse, len(data.every.layers))


def quest_recall(data: Data) -> Ours:
    recipe, k = quest(page_size=16), LENGTH // 10
    return mean_of([found_of(seen, recipe, k, 10) for seen in layers_of(data.some)])


def loki_rank(data: Data) -> Ours:
    ranks = []
    for seen in layers_of(data.every):
        step = step_of(seen.keys)
        turned = seen.keys - seen.keys.mean(2, keepdim=True)
        energy = (turned @ loki().learn(seen.keys, step)).double().square().mean(2)[0]
        held = energy.cumsum(-1) / energy.sum(-1, keepdim=True)
        ranks.append(float(((held < 0.9).sum(-1) + 1).double().mean()) / energy.shape[-1])
    return mean_of(ranks)


def retroinfer_segments(data: Data) -> Ours:
    k = round(0.018 * LENGTH) + 4 + 64
    drops = [
        found_of(seen, retroinfer(segment=LENGTH), k, 3)
        - found_of(seen, retroinfer(segment=LENGTH // 16), k, 3)
        for seen in layers_of(data.some)
    ]
    return mean_of(drops)


CLAIMS = {
    "streaming_llm-sink": streaming_llm_sink,
    "h2o-sparsity": h2o_sparsity,
    "quest-recall": quest_recall,
    "loki-rank": loki_rank,
    "retroinfer-segments": retroinfer_segments,
}
