"""All that decides the reference model, besides the books: its shape, and how it is trained."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch

from topkit.errors import InputError


@dataclass(frozen=True)
class Phase:
    """So many steps of `rows` sequences of `length` tokens."""

    steps: int
    rows: int
    length: int


@dataclass(frozen=True)
class Recipe:
    """All that decides the reference model, besides the books."""

    phases: tuple[Phase, ...] = (Phase(2200, 128, 2048), Phase(640, 32, 8192))
    layers: int = 8
    width: int = 384
    heads: int = 6
    kv_heads: int = 2
    head_dim: int = 64
    feed_forward: int = 1024
    vocabulary: int = 4096
    rope_base: float = 1e5
    peak: float = 3e-3
    floor: float = 6e-4
    last: float = 6e-5
    warmup: int = 150
    decay: float = 0.12
    weight_decay: float = 0.1
    seed: int = 0

    @property
    def steps(self) -> int:
        return sum(phase.steps for phase in self.phases)

    def rate(self, step: int) -> float:
        """Warm-up, a cosine from `peak` to `floor`, then a line down to `last`."""
        if step < self.warmup:
            return self.peak * (step + 1) / self.warmup
        turn = self.steps * (1 - self.decay)
        if step >= turn:
            left = (self.steps - step) / (self.steps - turn)
            return self.last + (self.floor - self.last) * left
        done = (step - self.warmup) / (turn - self.warmup)
        return self.floor + (self.peak - self.floor) * 0.5 * (1 + math.cos(math.pi * done))

    def phase(self, step: int) -> Phase:
        for phase in self.phases:
            if step < phase.steps:
                return phase
            step -= phase.steps
        raise InputError(f"the recipe has {self.steps} steps")

    @classmethod
    def second(cls) -> Recipe:
        """What followed the first run, from its weights, with the digits' embeddings drawn anew.

        Tied to the output, the ten digits had become nearly one vector (cosines 0.8 to 0.95) before
        the model could retrieve an answer, and then could not be copied.
        """
        phases = (Phase(1300, 128, 2048), Phase(130, 32, 8192))
        return replace(cls(), phases=phases, peak=2e-3, floor=4e-4, warmup=100, decay=0.2, seed=1)

    @classmethod
    def tiny(cls) -> Recipe:
        """Seconds on a laptop: shows that the recipe runs, and nothing else."""
        phases = (Phase(4, 2, 256), Phase(2, 2, 512))
        return replace(
            cls(), phases=phases, layers=2, width=64, heads=2, kv_heads=1, head_dim=32,
            feed_forward=128, vocabulary=512, warmup=2,
        )  # fmt: skip


@dataclass(frozen=True)
class Sft:
    """How a model goes on learning: what `attention` and `ratio` do not change.

    rate: of the first steps after the warm-up, then in a line down to a tenth. least: keys that a query keeps
    at any ratio, if it sees so many.
    """

    steps: int = 300
    rows: int = 16
    length: int = 4096
    peak: float = 3e-4
    warmup: int = 20
    weight_decay: float = 0.1
    least: int = 1
    seed: int = 0

    def rate(self, step: int) -> float:
        """Warm-up, then a line from `peak` to a tenth of it."""
        if step < self.warmup:
            return self.peak * (step + 1) / self.warmup
        done = (step - self.warmup) / max(1, self.steps - self.warmup)
        return self.peak * (1 - 0.9 * done)

    @classmethod
    def of(cls, model: str) -> Sft:
        """What suits a model: the reference model was made for this mixture, others for more than it."""
        return cls() if model == "reference" else cls(steps=200, rows=8, length=2048, peak=5e-5)

    @classmethod
    def tiny(cls) -> Sft:
        """Seconds on a laptop: shows that it runs, and nothing else."""
        return cls(steps=3, rows=1, length=128, warmup=1)


def new_model(recipe: Recipe) -> Any:
    """A Qwen3 model of the recipe's shape, weights drawn from its seed."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(recipe.seed)
    return Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=recipe.vocabulary,
            hidden_size=recipe.width,
            intermediate_size=recipe.feed_forward,
            num_hidden_layers=recipe.layers,
            num_attention_heads=recipe.heads,
            num_key_value_heads=recipe.kv_heads,
            head_dim=recipe.head_dim,
            max_position_embeddings=max(8192, *(p.length for p in recipe.phases)),
            rope_parameters={"rope_type": "default", "rope_theta": recipe.rope_base},
            tie_word_embeddings=True,
            attention_dropout=0.0,
            bos_token_id=0,
            eos_token_id=1,
            pad_token_id=1,
            initializer_range=0.02,
        )
    )
