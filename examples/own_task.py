"""A task of your own: who holds a key, asked of the bundled model with full attention and with 8 keys a head.

The model was not trained on it and hardly ever answers; how likely it holds the true answer (NLL) still tells
selections apart.
"""

from dataclasses import dataclass
from tempfile import TemporaryDirectory
from typing import ClassVar

import topkit
from topkit.experiments.tasks.base import Planted, Question, Task

WHO = ("Anna", "Boris", "Clara", "David")
WHAT = ("attic", "cellar", "garden", "stable")


@dataclass(frozen=True)
class Holder(Task):
    """One sentence for each question: who holds a key."""

    name: ClassVar[str] = "holder"
    asks: ClassVar[str] = "who holds a key"

    questions: int = 2

    def plant(self, rng, wording):
        holders = dict(zip(rng.permutation(WHAT), rng.permutation(WHO), strict=True))
        return Planted(
            sentences=tuple(f"The key of the {x} is held by {who}." for x, who in holders.items()),
            questions=tuple(
                Question(f"\nThe key of the {x} is held by", f" {who}", (str(who),))
                for x, who in list(holders.items())[: self.questions]
            ),
        )


if __name__ == "__main__":
    with TemporaryDirectory() as folder:
        rows = topkit.evaluate("reference", Holder(), 512, 2, ["exact", "sign"], 8, out=folder)
    table = rows.group_by("indexer").aggregate([("score", "mean"), ("nll", "mean")])
    for row in table.sort_by("nll_mean").to_pylist():
        print(f"{row['indexer']:10}answers {row['score_mean']:.2f}  NLL {row['nll_mean']:.2f}")
