"""A frozen model's attention as the teacher of a lightning indexer in each of its layers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from topkit.errors import InputError
from topkit.experiments.model.attention import switched_attention
from topkit.experiments.model.attention_call import AttentionCall
from topkit.experiments.model.record import NOT_SWITCHED
from topkit.indexers.lightning_weights import LayerWeights
from topkit.kernels.score import score, score_lightning


class Teacher:
    """Grades fresh index weights of every layer by what the layer attends to.

    The target of a query is its attention summed over heads, as a distribution over the keys; the
    loss is KL(target || softmax of the index scores), at `queries` random positions a batch.
    Source: DeepSeek-V3.2-Exp report, section 2.1, dense warm-up stage.
    """

    def __init__(self, model: Any, heads: int, dim: int, queries: int, seed: int) -> None:
        self.model, self.queries = model, queries
        self.random = torch.Generator().manual_seed(seed)
        numbers = [
            module.layer_idx
            for module in model.modules()
            if hasattr(module, "layer_idx") and hasattr(module, "q_proj")
        ]
        if not numbers:
            raise InputError(
                f"{model.config.model_type}: no attention modules with a q_proj to learn from"
            )
        width = model.config.hidden_size
        self.layers = {number: self._fresh(width, heads, dim) for number in numbers}
        self._losses: list[Tensor] = []

    def parameters(self) -> list[Tensor]:
        return [x for weights in self.layers.values() for x in weights.tensors.values()]

    def loss(self, ids: Tensor) -> Tensor:
        """The mean loss of all layers over token ids [B, T].

        Raises: InputError for a model whose attention cannot be watched, or is not softmax(q k) v.
        """
        self._losses = []
        with switched_attention(self.model, self._attend, inputs=True):
            self.model.base_model(ids, use_cache=False)
        if not self._losses:
            name = type(self.model).__name__
            raise InputError(f"{name} cannot be learnt from: {NOT_SWITCHED}")
        return torch.stack(self._losses).mean()

    def _attend(self, call: AttentionCall) -> Tensor:
        call.require_plain()
        self._losses.append(self._grade(call))
        return call.dense()

    def _grade(self, call: AttentionCall) -> Tensor:
        length, device = call.keys.shape[2], call.keys.device
        at = torch.randint(1, length, (self.queries,), generator=self.random).to(device)
        future = torch.arange(length, device=device) > at[:, None]
        logits = call.scaling * score(call.queries[:, :, at], call.keys)
        target = logits.masked_fill(future, float("-inf")).softmax(-1).mean(1)
        hidden, (cos, sin) = call.inputs["hidden"], call.inputs["rope"]
        weights = self.layers[call.layer]
        with torch.enable_grad():
            queries = weights.queries(hidden[:, at], (cos[:, at], sin[:, at]))
            keys, gates = weights.keys(hidden, (cos, sin)), weights.gates(hidden[:, at])
            scores = score_lightning(queries, keys, gates)[:, 0]
            logs = scores.masked_fill(future, float("-inf")).log_softmax(-1).masked_fill(future, 0)
            return (torch.special.entr(target).neg() - target * logs).sum(-1).mean()

    def _fresh(self, width: int, heads: int, dim: int) -> LayerWeights:
        def normal(*shape: int) -> Tensor:
            drawn = torch.randn(*shape, generator=self.random) * width**-0.5
            return drawn.to(self.model.device).requires_grad_()

        ones = torch.ones(dim, device=self.model.device)
        tensors = {
            "wq": normal(heads * dim, width),
            "wk": normal(dim, width),
            "norm": ones.clone().requires_grad_(),
            "norm_bias": (ones * 0).requires_grad_(),
            "gates": normal(heads, width),
        }
        return LayerWeights(tensors, heads, rope="half", rope_at="first", reads_latent=False)
