"""What the study lightning-precision found, in sentences made from its numbers."""

# pyright: strict
from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from topkit.experiments.study.precision import ORACLES, plain
from topkit.experiments.study.precision_table import Gathered
from topkit.grammar import short
from topkit.indexers.base import Indexer
from topkit.indexers.lightning import GIVEN, lightning
from topkit.indexers.lightning_weights import load

# What is aimed at, held out, at this budget: of the common list, on text, on tasks, and in the worst layer.
AT, TEXT, TASK, WORST = "1.6%", 0.90, 0.85, 0.75
# An untrained indexer may read so many times the bytes, to be compared.
NEAR = 1.2


def learnt_on(indexer: Indexer) -> str:
    """What a lightning indexer's weights were trained on, as their file says; "" where it says nothing."""
    if not isinstance(indexer, lightning) or indexer.weights == GIVEN:
        return ""
    return load(indexer.weights).metadata.get("data", "")


def target_budget(setting: Gathered) -> str:
    """The budget that is spoken of: the target's, or the middle one."""
    return AT if AT in setting.budgets else setting.budgets[len(setting.budgets) // 2]


def sentences(setting: Gathered) -> list[str]:
    """The sentences of a setting."""
    budget = target_budget(setting)
    learnt = [one for one in setting.indexers if plain(one) is not None and setting.has(one, budget)]  # fmt: skip
    whole = [one for one in learnt if plain(one) == one]
    lines = [line for one in whole for line in _of_weights(setting, one, budget)]
    lines += [line for one in whole for line in _of_precisions(setting, one, learnt, budget)]
    return [*lines, *_beside(setting, learnt, budget)]


def _of_weights(setting: Gathered, one: Indexer, budget: str) -> Iterator[str]:
    """How much of the common list it finds, whether that is what was aimed at, and where the rest goes."""
    loss = setting.loss(one, budget)
    if loss is None:
        return
    found, aim = setting.mean(one, budget, "summed"), TEXT if setting.text else TASK
    low, high = setting.interval(one, budget, "summed")
    layer, worst = setting.worst(one, budget)
    data = f", learnt on {learnt_on(one)}," if learnt_on(one) else ""
    within = "" if low is None or high is None else f" [{low:.2f}, {high:.2f}]"
    aimed = "" if budget != AT else f" (aim {aim:.2f}: {_met(found, aim)})"
    least = "" if budget != AT else f" (aim {WORST:.2f}: {_met(worst, WORST)})"
    yield (
        f"`{short(one)}`{data} keeps {found:.2f}{within} of the common list at k = {budget}{aimed}, and {worst:.2f} "
        f"in its worst layer, {layer}{least}."
    )
    own = setting.mean(one, budget, "own")
    yield (
        f"It keeps {own:.2f} of the heads' own lists. Of the {1 - own:.2f} that are missing, one list for all heads "
        f"costs {loss.sharing:.2f}, and that its scores choose another list {loss.scoring:.3f}."
    )


def _met(value: float, aim: float) -> str:
    return "met" if value >= aim else f"missed by {aim - value:.2f}"


def _of_precisions(
    setting: Gathered, one: Indexer, learnt: list[Indexer], budget: str
) -> Iterator[str]:
    """What lower precision changes, and rotation."""
    low = [other for other in learnt if plain(other) == one and other != one]
    if not low:
        return
    shown = ", ".join(
        f"{_dtype(other)} {setting.mean(other, budget, 'fp32'):.2f}{_change(setting, other, budget)}"
        for other in low
    )
    yield f"Of `{short(one)}`'s own list in float32 lower precision keeps: {shown}."
    turned = [
        f"{other.dtype} {setting.mean(twin, budget, 'fp32') - setting.mean(other, budget, 'fp32'):+.3f}"
        for other in low
        if isinstance(other, lightning) and not other.hadamard
        if setting.has(twin := replace(other, hadamard=True), budget)
    ]
    if turned:
        yield f"Hadamard's rotation changes that by: {', '.join(turned)}."


def _dtype(indexer: Indexer) -> str:
    assert isinstance(indexer, lightning)
    return indexer.dtype if indexer.hadamard else f"{indexer.dtype} not rotated"


def _change(setting: Gathered, indexer: Indexer, budget: str) -> str:
    loss = setting.loss(indexer, budget)
    return "" if loss is None else f" (precision of own lists {-loss.quantisation:+.3f})"


def _beside(setting: Gathered, learnt: list[Indexer], budget: str) -> Iterator[str]:
    """The best untrained indexers that read about as many bytes as lower precision does."""
    others = [
        one
        for one in setting.indexers
        if one not in ORACLES and one not in learnt and setting.has(one, budget)
    ]
    for one in learnt:
        rotated = isinstance(one, lightning) and one.dtype != "fp32" and one.hadamard
        if not rotated or setting.loss(one, budget) is None:
            continue
        read = setting.mean(one, budget, "bytes")
        fair = [x for x in others if setting.mean(x, budget, "bytes") <= NEAR * read]
        if not fair:
            continue
        parts: list[str] = []
        for name, words in (("summed", "the common list"), ("own", "the heads' own lists")):
            best = max(fair, key=lambda x: setting.mean(x, budget, name))
            parts.append(
                f"{setting.mean(one, budget, name):.2f} of {words}, and `{short(best)}`, which reads "
                f"{setting.mean(best, budget, 'bytes'):.0f}, {setting.mean(best, budget, name):.2f}"
            )
        yield (
            f"`{short(one)}` reads {read:.0f} bytes a token; beside the best untrained indexers of about as many it "
            f"keeps {'; '.join(parts)}."
        )
