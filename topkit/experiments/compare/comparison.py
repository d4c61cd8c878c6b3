"""What the rows of a comparison say: fidelity of the candidate against the baseline's own lists, and the verdict."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from topkit.errors import GateFailed, Undecided
from topkit.experiments.compare.interval import ERROR, FEWEST, Mean, most_of
from topkit.experiments.compare.layer import Columns, Question
from topkit.experiments.compare.sentence import sentence
from topkit.experiments.compare.verdict import (
    UNDECIDED,
    UNSAFE,
    Loss,
    Verdict,
    tail_of,
    verdict,
)

PLACE = ("sample", "layer", "list", "position")


@dataclass(frozen=True)
class Comparison:
    """The rows of all sequences, one a layer, list and position, and what they say.

    rows: columns of one length, those of `LayerRows` behind sample, layer and sequence; copies of a sequence
    share its number. left_out: rows of which k covers all that the query sees. of: whose weights `lost` is of.
    """

    question: Question
    margins: Mapping[str, float]
    rows: Columns = field(repr=False)
    left_out: int
    of: str | None

    @cached_property
    def losses(self) -> dict[str, Loss]:
        """The mean loss of recall, and of mass where something weighs keys, for which a margin is set."""
        return {name: self._loss(name, margin) for name, margin in self.margins.items()}

    @cached_property
    def verdict(self) -> Verdict:
        return verdict(self.losses)

    @cached_property
    def sentence(self) -> str:
        """The verdict and its reason."""
        return sentence(self.verdict, self.losses)

    def require(self) -> None:
        """Raises: GateFailed where the candidate is unsafe, Undecided where the sequences do not decide."""
        if self.verdict.word == UNSAFE:
            raise GateFailed(self.sentence)
        if self.verdict.word == UNDECIDED:
            raise Undecided(self.sentence)

    def summary(self) -> dict[str, Any]:
        """All of it as JSON has it; docs/compare.md says what each name means."""
        rows, sequences = self.rows, np.unique(self.rows["sequence"])
        changed, tied = rows["changed"], rows.get("tied")
        by_ties = changed & (rows["recall"] == 1)
        return {
            "verdict": self.verdict.word,
            "sentence": self.sentence,
            "sequences_to_decide": self.verdict.sequences,
            "baseline": repr(self.question.baseline),
            "candidate": repr(self.question.candidate),
            "k": str(self.question.budget),
            "error": ERROR,
            "sequences": len(sequences),
            "copies": len(np.unique(rows["sample"])) - len(sequences),
            "sequences_over": self._over(len(sequences)),
            "rows": len(changed),
            "left_out": self.left_out,
            "keys": {"baseline": _mean(rows["own_keys"]), "candidate": _mean(rows["keys"])},
            "recall": self._recall(),
            "mass": self._mass(),
            "rows_changed": _mean(changed),
            "changed_by_ties": None if tied is None else _mean(by_ties),
            "ties_at_boundary": None if tied is None else _mean(tied),
            "rerun": self._rerun(),
            "by_layer": self._means("layer"),
            "by_sequence": self._means("sample"),
        }

    def _loss(self, name: str, margin: float) -> Loss:
        own = Mean.of(self._by_sequence(name, ""))
        again = self._by_sequence(name, "rerun_") if "rerun_recall" in self.rows else None
        return Loss(own, margin, None if again is None else Mean.of(again))

    def _by_sequence(self, name: str, prefix: str) -> np.ndarray:
        """The mean loss of each sequence; what one gains is no gain of another."""
        x = self.rows[prefix + ("recall" if name == "recall" else "lost")]
        lost = 1 - x if name == "recall" else x
        _, which = np.unique(self.rows["sequence"], return_inverse=True)
        return np.maximum(np.bincount(which, lost) / np.bincount(which), 0.0)

    def _ends(self, name: str) -> tuple[float, float] | tuple[None, None]:
        """The ends of the mean loss; of few sequences there are none."""
        mean, tail = self._loss(name, 1.0).mean, tail_of(self.losses)
        return (mean.low(tail), mean.high(tail)) if mean.sequences >= FEWEST else (None, None)

    def _recall(self) -> dict[str, Any]:
        recall, (low, high) = self.rows["recall"], self._ends("recall")
        worst = int(recall.argmin())
        return {
            "mean": 1 - float(self._by_sequence("recall", "").mean()),
            "low": None if high is None else 1 - high,
            "high": None if low is None else 1 - low,
            "p1": float(np.percentile(recall, 1)),
            "worst": float(recall[worst]),
            "worst_row": self._place(worst),
            "margin": self.margins.get("recall"),
        }

    def _mass(self) -> dict[str, Any] | None:
        if self.of is None:
            return None
        lost, (low, high) = self.rows["lost"], self._ends("mass")
        worst = int(lost.argmax())
        return {
            "of": self.of,
            "baseline": _mean(self.rows["mass"]),
            "chance": _mean(self.rows["own_keys"] / (self.rows["position"] + 1)),
            "lost": float(self._by_sequence("mass", "").mean()),
            "low": low,
            "high": high,
            "p99": float(np.percentile(lost, 99)),
            "worst": float(lost[worst]),
            "worst_row": self._place(worst),
            "margin": self.margins.get("mass"),
        }

    def _rerun(self) -> dict[str, Any] | None:
        """What the baseline changes by itself from run to run."""
        if "rerun_recall" not in self.rows:
            return None
        lost = None if self.of is None else float(self._by_sequence("mass", "rerun_").mean())
        return {
            "recall": 1 - float(self._by_sequence("recall", "rerun_").mean()),
            "mass_lost": lost,
            "rows_changed": _mean(self.rows["rerun_changed"]),
        }

    def _over(self, sequences: int) -> dict[str, float]:
        """How many sequences lose more than a margin, and the share of all that may, at most."""
        each = [np.array(loss.mean.losses) > loss.margin for loss in self.losses.values()]
        count = int(np.any(each, 0).sum())
        return {"count": count, "at_most": most_of(count, sequences)}

    def _means(self, by: str) -> list[dict[str, Any]]:
        values, which = np.unique(self.rows[by], return_inverse=True)
        sizes = np.bincount(which)
        names = {"recall": "recall", "lost": "mass_lost", "changed": "rows_changed"}
        means = {
            said: np.bincount(which, self.rows[name].astype(float)) / sizes
            for name, said in names.items()
            if name in self.rows
        }
        return [
            {by: int(value), "rows": int(sizes[n]), **{s: float(x[n]) for s, x in means.items()}}
            for n, value in enumerate(values)
        ]

    def _place(self, row: int) -> dict[str, int]:
        return {name: int(self.rows[name][row]) for name in PLACE}


def _mean(x: np.ndarray) -> float:
    return float(x.mean())
