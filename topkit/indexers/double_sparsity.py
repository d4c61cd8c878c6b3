# pyright: strict
"""Double Sparsity: a few static channels of the keys, chosen beforehand."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from topkit.indexers.base import Step
from topkit.indexers.channels import Calibrated
from topkit.indexers.key_moments import mean_magnitude
from topkit.indexers.stated_cost import Shape


@dataclass(frozen=True)
class double_sparsity(Calibrated):
    """Scores over the channels in which keys are largest, always the same, and gives up the others.

    Without a file of calibration these are the channels of the greatest mean |k_i| of the keys at build;
    a file has those of the greatest mean |q_i k_i|, a token's query with its own key, summed over a group.
    Ties go to the lower channel. Source: arXiv 2408.07092, section 3.1 (offline calibration); its
    config/offline_calibration.py has both orders.
    """

    channels: int | float = 0.0625

    source: ClassVar[str] = "arXiv 2408.07092"
    cost: ClassVar[str] = "reads 1/16 of the numbers of each key"
    table: ClassVar[str] = "channels"
    examples: ClassVar[tuple[str, ...]] = (
        "double_sparsity()",
        "double_sparsity(channels=0.5)",
        "double_sparsity(channels=5)",
    )

    def table_bytes(self, shape: Shape) -> float:
        return 8 * shape.Hk * self.count(shape.D)

    def learn(self, keys: Tensor, step: Step) -> Tensor:
        return mean_magnitude(keys, step).sort(dim=-1, descending=True, stable=True).indices

    def leading(self, table: Tensor, count: int) -> Tensor:
        return table[..., :count]

    def through(self, vectors: Tensor, table: Tensor) -> Tensor:
        at = table[:, :, None].expand(*vectors.shape[:3], -1)
        return vectors.gather(-1, at)
