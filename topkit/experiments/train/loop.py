"""The steps of a training, whatever is trained: resumed, logged, stopped in time and at a loss that is no number."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from topkit.errors import InputError
from topkit.experiments.train.checkpoint import Checkpoints
from topkit.experiments.train.deadline import Deadline
from topkit.experiments.train.training_log import Log
from topkit.experiments.train.world import World, part_of

# Steps between two rows of the log.
LOGGED = 50
# Seconds between two checkpoints.
SAVED = 60.0
# Tokens of one pass on a CPU: 1 GB of the reference model's activations, and seconds of two cores.
PASS = 4 << 10
ALONE = World()


@dataclass(frozen=True, kw_only=True)
class Loop:
    """How steps are taken. A batch is a tuple whose first is the token ids [rows, length + 1].

    losses_of: of (model, *batch on the device) the loss and what is logged beside it, a number;
    rate_of: the learning rate of a step; batches: those from a step on, each by its number alone, so that a
    training that was killed comes to the same weights. world: the processes that share each batch's rows; the
    first of them writes. most: tokens of one pass; a batch of more rows is read in several, whose gradients add up.
    """

    steps: int
    batches: Callable[[int], Iterable[tuple[Any, ...]]]
    losses_of: Callable[..., tuple[Tensor, Tensor]]
    rate_of: Callable[[int], float]
    checkpoints: Checkpoints
    log: Path
    clip: float = 1.0
    autocast: torch.dtype | None = torch.bfloat16
    logged: int = LOGGED
    saved: float = SAVED
    world: World = ALONE
    most: int | None = None

    def run(self, model: Any, optimizer: torch.optim.Optimizer, stop_after: float) -> bool:
        """Take the steps that are left, for `stop_after` seconds at most; returns whether the end was reached.

        A step of one pass is always taken to its end; of several, one that comes too late is taken again by the
        next call.
        Raises: InputError naming the step whose loss or gradient is NaN or infinite; the weights from
        before it are kept as a checkpoint.
        """
        device = next(model.parameters()).device
        start, _ = self.checkpoints.resume(model, optimizer, device)
        # Nobody writes before all have read.
        self.world.wait()
        losses_of = self.world.losses_of(model, self.losses_of)
        log = Log(self.log, start, self.checkpoints.report) if self.world.first else None
        deadline, saved = Deadline.within(stop_after), time.monotonic()
        for step, whole in enumerate(self.batches(start), start):
            rate = self.rate_of(step)
            batch, share = self.world.own(whole)
            passes = [
                ([_on(x, device) for x in part], of) for part, of in self._passes(batch, share)
            ]
            losses = self._step(model, optimizer, losses_of, passes, step, rate, deadline)
            if losses is None:
                self._leave(step, model, optimizer, step == start)
                return False
            last, now = step + 1 == self.steps, time.monotonic()
            stop = last or self.world.agreed(deadline.passed, device)
            if log is not None:
                log.add(losses, math.prod(whole[0].shape) - whole[0].shape[0])
                if stop or (step + 1) % self.logged == 0:
                    log.write(step + 1, rate)
                if stop or now - saved > self.saved:
                    self.checkpoints.save(step + 1, model, optimizer)
                    saved = time.monotonic()
            if stop:
                return last
        return True

    def _passes(self, batch: list[Any], share: float) -> Iterator[tuple[list[Any], float]]:
        """The parts that a batch is read in, each with its share of the whole loss."""
        rows, length = batch[0].shape
        fit = max(1, self.most // length) if self.most and self.world.size == 1 else rows
        if rows <= fit:
            yield batch, share
            return
        for first in range(0, rows, fit):
            part, of = part_of(batch, slice(first, first + fit))
            yield part, share * of

    def _step(
        self,
        model: Any,
        optimizer: torch.optim.Optimizer,
        losses_of: Callable[..., tuple[Tensor, Tensor]],
        passes: Sequence[tuple[list[Tensor], float]],
        step: int,
        rate: float,
        deadline: Deadline,
    ) -> Tensor | None:
        """One step of the optimizer by this process's share of a batch; the losses [2] before it, of the whole.

        None, and nothing changed, where the deadline passes between two passes.
        """
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad(set_to_none=True)
        found: list[Tensor] = []
        for batch, share in passes:
            if found and deadline.passed:
                return None
            try:
                with torch.autocast(batch[0].device.type, self.autocast, self.autocast is not None):
                    loss, beside = losses_of(model, *batch)
            except InputError as error:  # as of scores that hold NaN
                raise self._stopped(str(error), step, model, optimizer) from error
            # Processes take the mean of their gradients.
            (loss * (share * self.world.size)).backward()
            found.append(torch.stack([loss.detach(), beside.detach()]) * share)
        losses = self.world.summed(torch.stack(found).sum(0))
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), self.clip)
        # Before the optimizer steps: what it would do with NaN cannot be undone.
        if not bool(torch.isfinite(losses[0]) & torch.isfinite(norm)):
            what = f"loss is {losses[0].item():g}, the norm of its gradient {norm.item():g}"
            raise self._stopped(what, step, model, optimizer)
        optimizer.step()
        return losses

    def _leave(self, step: int, model: Any, optimizer: torch.optim.Optimizer, none: bool) -> None:
        """Keep the state before a step that was not ended in time; `none`: no other was either."""
        optimizer.zero_grad(set_to_none=True)
        self.checkpoints.save(step, model, optimizer)
        if none:
            self.checkpoints.report(
                f"no step was done in the time given: on this machine one takes longer; give it more, or a GPU (step {step} "
                "is taken again)"
            )

    def _stopped(
        self, what: str, step: int, model: Any, optimizer: torch.optim.Optimizer
    ) -> InputError:
        """Keep the weights from before a step that cannot be taken; the error that says so."""
        path = self.checkpoints.folder
        if self.world.first:
            path = self.checkpoints.save(step, model, optimizer)
        return InputError(
            f"step {step}: {what}; stopped, and the weights from before it are kept in {path}; try another "
            "learning rate or seed in another folder"
        )


def _on(x: Any, device: torch.device) -> Tensor:
    """An array of a batch on the device: ids as int64, weights as float32."""
    tensor = x if isinstance(x, Tensor) else torch.from_numpy(x)
    kind = torch.float32 if tensor.is_floating_point() else torch.int64
    if not tensor.is_floating_point() and tensor.dtype == torch.uint16:
        tensor = tensor.to(torch.int32)
    return tensor.to(device, non_blocking=True).to(kind)
