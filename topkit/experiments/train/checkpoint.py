"""Checkpoints of a training: written whole or not at all, and the last whole one gone on with."""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from topkit.errors import InputError
from topkit.experiments.runs.parts import write_whole

_NAME = re.compile(r"step-(\d+)-([0-9a-f]{12})\.pt")


@dataclass(frozen=True)
class Checkpoints:
    """A folder of step-N-HASH.pt, the state before step N; the hash is of the file's bytes.

    A file whose bytes are not its hash's is half-written, and passed over by the one before it.
    `kept`: how many stay, so that there is one before it.
    """

    folder: Path
    report: Callable[[str], object] = print
    kept: int = 2

    def save(self, step: int, model: Any, optimizer: torch.optim.Optimizer, **more: Any) -> Path:
        """Keep the state before a step, and delete the oldest beyond those that are kept.

        Raises: InputError where the disk is full, or the weights hold NaN or infinity.
        """
        weights = model.state_dict()
        require_finite(weights, step)
        content = io.BytesIO()
        state = {"model": weights, "optimizer": optimizer.state_dict(), "step": step, "more": more}
        torch.save(state, content)
        name = f"step-{step}-{_hash(content.getbuffer())}.pt"
        path = self.folder / name
        write_whole(path, lambda to: to.write_bytes(content.getbuffer()))
        for _, old in list(self._there())[self.kept :]:
            old.unlink(missing_ok=True)
        return path

    def resume(
        self,
        model: Any,
        optimizer: torch.optim.Optimizer | None = None,
        device: str | torch.device = "cpu",
    ) -> tuple[int, Mapping[str, Any]]:
        """Bring a model and its optimizer to the last whole checkpoint: the step to go on from, and what more was kept.

        Step 0 where there is none. What is passed over is reported, a line each.
        Raises: InputError for weights of other names or shapes than the model's.
        """
        for half in self.folder.glob(".step-*.tmp"):
            half.unlink(missing_ok=True)
        passed = 0
        for step, path in self._there():
            content = path.read_bytes()
            if _hash(content) != path.stem.rpartition("-")[2]:
                self.report(f"{path} is half-written; it is passed over")
                passed += 1
                continue
            state = torch.load(io.BytesIO(content), map_location=device, weights_only=True)
            load_weights(model, state["model"], str(path))
            if optimizer is not None:
                optimizer.load_state_dict(state["optimizer"])
            if passed:
                self.report(f"going on from step {step}, the last whole checkpoint: {path}")
            return step, state["more"]
        if passed:
            self.report(f"no whole checkpoint in {self.folder}; beginning anew")
        return 0, {}

    def _there(self) -> Iterator[tuple[int, Path]]:
        """Steps and their files, the last step first."""
        found = [
            (int(name[1]), path)
            for path in self.folder.glob("step-*.pt")
            if (name := _NAME.fullmatch(path.name))
        ]
        return iter(sorted(found, reverse=True))


def load_weights(model: Any, weights: Mapping[str, Tensor], where: str) -> None:
    """Give a model the weights of a checkpoint.

    Raises: InputError naming the first tensor that is missing, foreign, or of another shape.
    """
    own = model.state_dict()
    for name in (*own, *weights):
        if name not in weights or name not in own:
            side = "lacks" if name not in weights else "holds, and the model does not,"
            raise InputError(
                f"{where} is a checkpoint of another shape: it {side} {name}; use another folder"
            )
        one, other = tuple(weights[name].shape), tuple(own[name].shape)
        if one != other:
            raise InputError(
                f"{where} is a checkpoint of another shape: {name} is {one} there, and {other} in "
                "the model; use another folder"
            )
    model.load_state_dict(weights)


def require_finite(weights: Mapping[str, Tensor], step: int) -> None:
    """Refuse weights that hold NaN or infinity.

    Raises: InputError naming the step and the tensor.
    """
    for name, tensor in weights.items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise InputError(f"before step {step} the weights {name} hold NaN or infinity")


def _hash(content: Any) -> str:
    return hashlib.sha256(content).hexdigest()[:12]
