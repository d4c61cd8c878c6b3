"""Headings that say what is seen, made from the numbers."""

# pyright: strict
from __future__ import annotations

from collections.abc import Sequence

from topkit.experiments.study.answer import misled
from topkit.experiments.study.cell_rows import Row
from topkit.experiments.study.sentences import BETTER, GOOD, UNDECIDED, WORSE


def of_cost(rows: Sequence[Row]) -> str:
    """What the cheapest that passes reads, and the dearest that fails."""
    real = [row for row in rows if row["kind"] == "real" and row["share"] is not None]
    passes = [row for row in real if row["verdict"] in (GOOD, BETTER)]
    fails = [row for row in real if row["verdict"] == WORSE]
    words: list[str] = []
    if passes:
        words.append(f"{min(row['share'] for row in passes):.0%} of the bytes can be enough")
    if fails:
        of = "" if passes else " of the bytes"
        words.append(f"{max(row['share'] for row in fails):.0%}{of} can be too few")
    return (
        _sentence(", and ".join(words))
        or "At no number of bytes is an indexer shown to pass or fail"
    )


def of_fidelity(rows: Sequence[Row]) -> str:
    """Whether recall tells what passes from what fails."""
    if (ends := misled(rows)) is not None:
        fails, passes = ends
        return f"A recall of {fails['recall']:.2f} fails where {passes['recall']:.2f} passes"
    judged = [r for r in rows if r["recall"] is not None and r["kind"] in ("real", "design")]
    passes = [row["recall"] for row in judged if row["verdict"] in (GOOD, BETTER)]
    fails = [row["recall"] for row in judged if row["verdict"] == WORSE]
    if passes and fails:
        return (
            f"What has a recall of {min(passes):.2f} or more passes, up to {max(fails):.2f} fails"
        )
    if passes or fails:
        return f"All that is decided {'passes' if passes else 'fails'}: recall tells nothing apart"
    return "Nothing is decided at any recall"


def of_budgets(rows: Sequence[Row]) -> str:
    """How exact Top-k's accuracy grows with k, full attention's beside it."""
    scored = [r for r in rows if r["kind"] == "exact" and r["kept"] and r["accuracy"] is not None]
    exact = sorted(scored, key=lambda row: row["kept"])
    dense = next((row["accuracy"] for row in rows if row["kind"] == "dense"), None)
    if not exact:
        return "Accuracy by the keys kept"
    ends = f"{exact[0]['accuracy']:.2f} at k = {exact[0]['budget']}"
    if len(exact) > 1:
        ends += f" to {exact[-1]['accuracy']:.2f} at k = {exact[-1]['budget']}"
    full = f"; full attention {dense:.2f}" if dense is not None else ""
    return f"Exact Top-k scores {ends}{full}"


def of_losses(rows: Sequence[Row]) -> str:
    """How far NLL tells apart what accuracy does not."""
    gaps = [row["nll_gap"] for row in rows if row["kind"] in ("real", "exact") and row["nll_gap"] is not None]  # fmt: skip
    if not gaps:
        return "NLL and KL"
    return (
        f"Accuracy tells little here; NLL rises by {min(gaps):.2f} to {max(gaps):.2f} nats a token"
    )


def of_cells(rows: Sequence[Row]) -> str:
    """How the verdicts fall."""
    verdicts = [row["verdict"] for row in rows if row["kind"] == "real"]
    good = sum(verdict in (GOOD, BETTER) for verdict in verdicts)
    worse, open_ = verdicts.count(WORSE), sum(v.startswith(UNDECIDED) for v in verdicts)
    return f"Every cell: {good} as good as exact Top-k, {worse} worse, {open_} undecided"


def _sentence(words: str) -> str:
    return words[:1].upper() + words[1:]
