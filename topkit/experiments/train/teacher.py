"""A model's attention as the teacher of a lightning indexer in each of its layers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, scaled_dot_product_attention

from topkit.errors import InputError
from topkit.experiments.model.attention import switched_attention
from topkit.experiments.model.attention_call import AttentionCall
from topkit.experiments.model.record import NOT_SWITCHED
from topkit.experiments.train.beginnings import fresh, from_file
from topkit.experiments.train.divergence import Attended, divergence
from topkit.indexers.lightning_weights import LayerWeights, Weights
from topkit.kernels.score import score_lightning
from topkit.kernels.select_topk import select_topk


class Teacher(nn.Module):
    """Index weights of every layer, graded by what the layer attends to.

    The target of a query is its attention summed over heads, as a distribution over the keys; the loss is that of
    `divergence`, at `queries` random positions of a batch (None: at all). begin: the weights to begin from, heads
    that they have not with gates of zero; None: at random.
    model_too: the model's parameters are parameters too; they learn the next token alone, attending over the keys
    that the indexer chose, and the indexer learns the divergence alone, of inputs that are detached.
    Source: DeepSeek-V3.2-Exp report, section 2.1.
    """

    def __init__(
        self,
        model: Any,
        heads: int,
        dim: int,
        queries: int | None,
        seed: int,
        *,
        begin: Weights | None = None,
        model_too: bool = False,
    ) -> None:
        super().__init__()
        # A list hides a frozen model: it is no part of what is trained and kept.
        self._model, self.queries, self.seed, self.heads = [model], queries, seed, heads
        self.model_too = model_too
        if model_too:
            self.trained = model
        numbers = [
            module.layer_idx
            for module in model.modules()
            if hasattr(module, "layer_idx") and hasattr(module, "q_proj")
        ]
        if not numbers:
            raise InputError(
                f"{model.config.model_type}: no attention modules with a q_proj to learn from"
            )
        random = torch.Generator().manual_seed(seed)
        self.layers = nn.ModuleDict()
        for number in numbers:
            tensors = fresh(model.config.hidden_size, heads, dim, random)
            if begin is not None:
                from_file(tensors, begin, number, heads)
            own = {name: nn.Parameter(x.to(model.device)) for name, x in tensors.items()}
            self.layers[str(number)] = nn.ParameterDict(own)
        self._losses: list[Tensor] = []
        self._positions, self._keep = torch.zeros(0), None
        self._counts: Tensor | None = None

    @property
    def model(self) -> Any:
        return self._model[0]

    def weights(self, layer: int) -> LayerWeights:
        """The index weights of a layer."""
        tensors: Any = self.layers[str(layer)]
        return LayerWeights(
            dict(tensors.items()), self.heads, rope="half", rope_at="first", reads_latent=False
        )

    def tensors(self) -> dict[str, Tensor]:
        """All index weights by `layer.name`."""
        every: Any = self.layers
        return {f"{n}.{k}": x.detach() for n, own in every.items() for k, x in own.items()}

    def loss(
        self, ids: Tensor, number: int, keep: int | None = None, counts: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The loss over token ids [B, T] of the batch of a number, and the mean divergence of all layers.

        keep: in the sparse stage, the keys that are chosen; None in the dense one. counts [B, T]: how many times the
        query of a token counts, None: once.
        Raises: InputError for a model whose attention cannot be watched, or is not softmax(q k) v.
        """
        length, trains = ids.shape[1], self.model_too and keep is not None
        self._losses, self._keep = [], keep
        random = torch.Generator().manual_seed(self.seed * 1_000_003 + number)
        some = self.queries is None or self.queries >= length
        at = torch.arange(length) if some else torch.randperm(length, generator=random)[: self.queries]  # fmt: skip
        self._positions = at.sort().values.to(ids.device)
        self._counts = None if counts is None else counts[:, self._positions]
        with switched_attention(self.model, self._attend, inputs=True, evaluation=not trains):
            if trains:
                logits = self.model(ids, use_cache=False).logits[:, :-1].float()
            else:
                self.model.base_model(ids, use_cache=False)
        if not self._losses:
            name = type(self.model).__name__
            raise InputError(f"{name} cannot be learnt from: {NOT_SWITCHED}")
        mean = torch.stack(self._losses).mean()
        if not trains:
            return mean, mean.detach()
        next_token = cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
        return mean + next_token, mean.detach()

    def _attend(self, call: AttentionCall) -> Tensor:
        call.require_plain()
        hidden = call.inputs["hidden"].detach()
        cos, sin = (angle.detach() for angle in call.inputs["rope"])
        weights, at = self.weights(call.layer), self._positions
        with torch.enable_grad():
            queries = weights.queries(hidden[:, at], (cos[:, at], sin[:, at]))
            keys, gates = weights.keys(hidden, (cos, sin)), weights.gates(hidden[:, at])
            own = call.queries[:, :, at].detach(), call.keys.detach()
            attended = Attended(*own, call.scaling, at, self._counts)
            self._losses.append(divergence(queries, keys, gates, attended, self._keep))
        if self.model_too and self._keep is not None:
            return _sparse(call, weights, hidden, (cos, sin), self._keep)
        return call.dense()


@torch.no_grad()
def _chosen(
    weights: LayerWeights, hidden: Tensor, rope: tuple[Tensor, Tensor], keep: int
) -> Tensor:
    """Which keys the indexer chooses for every token [B, 1, T, T] bool, one list for all heads."""
    length = hidden.shape[1]
    queries, keys = weights.queries(hidden, rope), weights.keys(hidden, rope)
    stop = torch.arange(1, length + 1, device=hidden.device)[None]
    scores = score_lightning(queries, keys, weights.gates(hidden), stop=stop, backend="torch")
    slots = select_topk(scores, min(keep, length), order=None)
    # Where fewer are visible than are kept stands -1, the place behind the last.
    places = slots.where(slots >= 0, length)
    mask = torch.zeros(*scores.shape[:3], length + 1, dtype=torch.bool, device=hidden.device)
    return mask.scatter_(-1, places, True)[..., :-1]


def _sparse(
    call: AttentionCall,
    weights: LayerWeights,
    hidden: Tensor,
    rope: tuple[Tensor, Tensor],
    keep: int,
) -> Tensor:
    """Attention [B, T, Hq, Dv] over the keys that the indexer chose."""
    mask = _chosen(weights, hidden, rope, keep)
    output = scaled_dot_product_attention(
        call.queries, call.keys, call.values, mask, scale=call.scaling, enable_gqa=True
    )
    return output.transpose(1, 2).contiguous()
