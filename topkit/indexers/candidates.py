# pyright: strict
"""The slots and scores that a step of fixed shapes takes its best keys from."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from topkit.kernels.select_topk import select_topk


@dataclass(frozen=True)
class Candidates:
    """Scores of slots, all of which are there whatever the number of keys; combinators change them.

    Shapes: scores [B, Hs, 1, n] float32, -inf where a slot may not be chosen, inf where it must be;
    slots [B, Hl, 1, n], Hl a divisor of Hs, each once, -1 for none (None: their places). What they cost as
    `Selection` has it, where the step is `counted`.
    """

    scores: Tensor
    slots: Tensor | None = None
    keys_scored: Tensor | float = 0
    bytes_read: Tensor | float = 0

    def best(self, k: int, *, ordered: bool, backend: str) -> Tensor:
        """The slots of the k best [B, Hs, 1, min(k, n)], -1 last; in no order unless it is asked for.

        Unchecked, as a check for NaN would wait for the GPU: a list with NaN is all -1.
        """
        slots = self.slots
        if slots is not None and slots.shape[1] != self.scores.shape[1]:
            slots = slots[:, :, None].expand(-1, -1, self.scores.shape[1] // slots.shape[1], -1, -1)
            slots = slots.flatten(1, 2)
        order = "score" if ordered else None
        return select_topk(self.scores, k, slots=slots, order=order, check=False, backend=backend)
