"""A task of your own: a number by a name, asked of the bundled model with full attention and with 8 keys a head."""

from dataclasses import dataclass
from tempfile import TemporaryDirectory
from typing import ClassVar

import topkit
from topkit.experiments.tasks.base import Planted, Question, Task

WHO = ("Anna", "Boris", "Clara", "David")


@dataclass(frozen=True)
class Locker(Task):
    """One sentence for each question: the number of a locker."""

    name: ClassVar[str] = "locker"
    asks: ClassVar[str] = "the number of a locker"

    questions: int = 2

    def plant(self, rng, wording):
        numbers = {name: str(rng.integers(10000, 100000)) for name in rng.permutation(WHO)}
        return Planted(
            sentences=tuple(f"The number of {who}'s locker is {n}." for who, n in numbers.items()),
            questions=tuple(
                Question(f"\nThe number of {who}'s locker is", f" {n}", (n,))
                for who, n in list(numbers.items())[: self.questions]
            ),
        )


if __name__ == "__main__":
    with TemporaryDirectory() as folder:
        rows = topkit.evaluate("reference", Locker(), 512, 2, ["exact", "sign"], 8, out=folder)
    table = rows.group_by("indexer").aggregate([("score", "mean"), ("nll", "mean")])
    for row in table.sort_by("indexer").to_pylist():
        print(f"{row['indexer']:10}answers {row['score_mean']:.2f}  NLL {row['nll_mean']:.2f}")
