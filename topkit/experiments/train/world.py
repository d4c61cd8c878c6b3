"""The processes of one training, as torchrun starts them: each takes its rows of every batch."""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from topkit.errors import InputError


@dataclass(frozen=True)
class World:
    """So many processes, of which this is one. By default it is alone."""

    rank: int = 0
    size: int = 1

    @classmethod
    def joined(cls, device: str) -> World:
        """The processes that torchrun started, of which each has a GPU of its own; alone without torchrun.

        Raises: InputError where there are more processes than GPUs.
        """
        size = int(os.environ.get("WORLD_SIZE", "1"))
        if size == 1:
            return cls()
        if device.startswith("cuda"):
            place, there = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
            if place >= there:
                raise InputError(
                    f"torchrun started process {place} of this machine, and torch finds {there} GPUs; give "
                    f"--nproc-per-node {there}"
                )
            torch.cuda.set_device(place)
        if not dist.is_initialized():
            dist.init_process_group("nccl" if device.startswith("cuda") else "gloo")
            atexit.register(dist.destroy_process_group)
        return cls(dist.get_rank(), dist.get_world_size())

    def said_by(self, report: Callable[[str], object]) -> Callable[[str], object]:
        """What reports a line, of one process alone."""
        return report if self.first else lambda line: None

    @property
    def first(self) -> bool:
        """Whether this process writes what there is one of: checkpoints, the log, the model."""
        return self.rank == 0

    def own(self, batch: Sequence[Any]) -> tuple[list[Any], float]:
        """This process's rows of a batch, and what of the loss they are.

        Of (ids, weights) that is their part of the weights, for the loss is a weighted mean; of ids alone, of the
        rows. What has fewer dimensions than ids goes to all.
        Raises: InputError for a batch of fewer rows than there are processes.
        """
        if self.size == 1:
            return list(batch), 1.0
        rows = len(batch[0])
        if rows < self.size:
            raise InputError(
                f"a batch of {rows} rows cannot be shared by {self.size} processes; start at most {rows}"
            )
        return part_of(
            batch, slice(rows * self.rank // self.size, rows * (self.rank + 1) // self.size)
        )

    def losses_of(
        self, model: nn.Module, losses_of: Callable[..., tuple[Tensor, Tensor]]
    ) -> Callable[..., tuple[Tensor, Tensor]]:
        """The losses of a model, after whose backward pass all processes have the mean of their gradients."""
        if self.size == 1:
            return losses_of
        together = DistributedDataParallel(_Losses(model, losses_of))
        return lambda _, *batch: together(*batch)

    def summed(self, losses: Tensor) -> Tensor:
        """The sum of all processes' tensors, of one shape."""
        if self.size > 1:
            dist.all_reduce(losses)
        return losses

    def agreed(self, stop: bool, device: torch.device) -> bool:
        """Whether the first process wants to stop: clocks differ, and all stop at one step."""
        if self.size == 1:
            return stop
        word = torch.tensor([float(stop)], device=device)
        dist.broadcast(word, 0)
        return bool(word.item())

    def wait(self) -> None:
        """Until all processes have come here."""
        if self.size > 1:
            dist.barrier()


def part_of(batch: Sequence[Any], at: slice) -> tuple[list[Any], float]:
    """Some rows of a batch, and what of its loss they are, as `World.own` says."""
    rows = len(batch[0])
    own = [x[at] if x.ndim == batch[0].ndim else x for x in batch]
    share = len(own[0]) / rows
    weights = batch[1] if len(batch) > 1 and batch[1].ndim == batch[0].ndim else None
    if weights is None:
        return own, share
    # As the loss weighs: what is predicted are all tokens but the first.
    part, whole = (float(x[:, 1:].astype("float64").sum()) for x in (weights[at], weights))
    return own, part / whole if whole else share


class _Losses(nn.Module):
    """A model and its losses as one module, whose call is what processes share."""

    def __init__(self, model: nn.Module, losses_of: Callable[..., tuple[Tensor, Tensor]]) -> None:
        super().__init__()
        self.model, self._losses_of = model, losses_of

    def forward(self, *batch: Tensor) -> tuple[Tensor, Tensor]:
        return self._losses_of(self.model, *batch)
