"""The log of a training: a CSV, a row every so many steps."""

from __future__ import annotations

import csv
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor


class Log:
    """Rows of a CSV, each with the mean losses since the row before; those from `start` on are another run's."""

    def __init__(self, path: Path, start: int, report: Callable[[str], object]) -> None:
        self.path, self.report = path, report
        self.began, self.tokens = time.monotonic(), 0
        self.losses: list[Tensor] = []
        if path.exists():
            names, *rows = path.read_text().splitlines(keepends=True) or [""]
            kept = [row for row in rows if row.endswith("\n") and int(row.split(",")[0]) <= start]
            path.write_text(names + "".join(kept)) if kept else path.unlink()

    def add(self, losses: Tensor, tokens: int) -> None:
        self.losses.append(losses)
        self.tokens += tokens

    def write(self, step: int, rate: float) -> None:
        mean, answer = torch.stack(self.losses).mean(0).tolist()
        self.losses = []
        seconds = time.monotonic() - self.began
        new = not self.path.exists()
        with self.path.open("a", newline="") as file:
            rows = csv.writer(file)
            if new:
                names = ["step", "loss", "answer_nll", "learning_rate", "tokens_this_run"]
                rows.writerow([*names, "seconds_this_run"])
            losses = [f"{mean:.5f}", f"{answer:.5f}"]
            rows.writerow([step, *losses, f"{rate:.3e}", self.tokens, f"{seconds:.1f}"])
        self.report(
            f"step {step} loss {mean:.4f} answers {answer:.4f} "
            f"{self.tokens / seconds:,.0f} tokens/s {seconds:.0f} s"
        )
