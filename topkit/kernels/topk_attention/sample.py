"""How rows of keys are sampled for a floor that somewhat more than the wanted keys reach."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from topkit.kernels.checks import MOST_BLOCKS

# Keys for one of the sample.
SPARSITY = 16
# How far the rank of the floor in the sample is kept from the wanted one, and how much room there is beyond what
# is expected: standard deviations, and whole numbers beyond these. Of 262,144 rows of random keys 10 to 25 were left
# to be cut again (benchmarks/LOG.md); the lists of a wider margin are longer in every row.
MARGIN, SPARE = 3.5, 4
# Candidates of a row that one program holds.
LARGEST = 1 << 13


@dataclass(frozen=True)
class Plan:
    """How rows of `length` keys are sampled, of which at most k stay: one key in each stretch of `sparsity`."""

    length: int
    k: int
    sparsity: int = SPARSITY

    @property
    def capacity(self) -> int:
        """Candidates that there is room for."""
        share = self.k / self.sparsity
        rank = share + MARGIN * math.sqrt(share) + SPARE
        rank += rank / 8  # as far above it the floor's rank may lie
        room = (rank + MARGIN * math.sqrt(rank) + SPARE) * self.sparsity
        return 128 * math.ceil(min(room, self.length) / 128)

    def places(self, device: torch.device) -> Tensor:
        """The slots of the sample, by a hash: no period of the keys follows it."""
        stream = torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0
        return _places(self.length, self.sparsity, device, stream)


@lru_cache(64)
def _places(length: int, sparsity: int, device: torch.device, stream: int) -> Tensor:
    """Remembered for a stream alone: another would read them before they are there, or after they are let go."""
    stretch = torch.arange(-(-length // sparsity), device=device)
    inside = (stretch * 0x45D9F3B >> 7) % sparsity
    return (stretch * sparsity + inside).clamp_max(length - 1).int()


def unsupported(queries: Tensor, keys: Tensor, k: int) -> str | None:
    """What the kernels do not take, as a sentence."""
    dim = queries.shape[3]
    if queries.dtype not in (torch.bfloat16, torch.float16):
        return f"queries must be bfloat16 or float16; got {queries.dtype}"
    if dim not in (16, 32, 64, 128):
        return f"queries must have a head dimension of 16, 32, 64 or 128; got {dim}"
    if queries.shape[0] * queries.shape[1] > MOST_BLOCKS:
        return f"queries must be of at most {MOST_BLOCKS} heads of all rows; got {tuple(queries.shape)}"
    if Plan(keys.shape[2], k).capacity > LARGEST:
        return f"k must be a few thousands at most; got {k}"
    return None
