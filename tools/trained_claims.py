"""What the studies that train say of published findings: Top-k in training, and the entropy of attention."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from claimed import NOT, NOT_RUN, SUPPORTED, UNDECIDED, Answer, lines, span, table, tally
from committed import RESULTS, folders, there

from topkit.experiments.study.blocks import Block
from topkit.experiments.study.ordering import Ordering
from topkit.experiments.study.reading import STUDY, study_of
from topkit.experiments.study.stats import Interval
from topkit.experiments.study.study_file import read_study
from topkit.experiments.train import entropy, topk_sft
from topkit.experiments.train.arms import BEFORE, DENSE
from topkit.experiments.train.arms import PARTS as PARTS
from topkit.experiments.train.found import Start, gaps, starts
from topkit.experiments.train.topk_changes import Beside, Moved, besides, moves

BESIDE = ("start", "task", "trained at", "scores: Top-k, dense", "difference", "over", "verdict", "k where better; worse", "by full attention")  # fmt: skip
MOVED = ("start", "task", "trained", "slot 0 before", "after", "change", "heads still reading", "their weight before", "after")  # fmt: skip
CHANGED = ("start", "task", "trained", "nats before", "minus before", "minus dense", "verdict")
ORDERED = ("start", "task", "trained", "heads", "lost at k", "by entropy", "by H / ln n")


def sft_helps() -> Answer:
    """Each training at a ratio against the dense one, decoded at that ratio."""
    return _answer("topk-sft", _of_sft, _sft_gaps, 1)


def entropy_falls() -> Answer:
    """The entropy after each training at a ratio minus that after the dense one."""
    return _answer("entropy", _of_entropy, _entropy_gaps, -1)


def _answer(
    study: str,
    told: Callable[[Sequence[Start]], list[Block]],
    differences: Callable[[Start], Iterator[Interval]],
    sign: int,
) -> Answer:
    """Supported where every interval lies on the claimed side of nought; not, where one lies on the other."""
    names = there(study) or there(f"{study}-quick")
    found = [
        one for name in names for one in starts(RESULTS / name, study_of(RESULTS / name / STUDY))
    ]
    made = [gap for start in found for gap in differences(start)]
    lows = [float(min(sign * gap.low, sign * gap.high)) for gap in made]
    highs = [float(max(sign * gap.low, sign * gap.high)) for gap in made]
    verdict = SUPPORTED if made and min(lows) > 0 else NOT if made and min(highs) < 0 else UNDECIDED
    if not found:
        return Answer(NOT_RUN, folders(names), told(found))
    left = [model for model in read_study(study).model if model not in {start.name for start in found}]  # fmt: skip
    return Answer(verdict, folders(names), [*told(found), *lines(*(f"Not judged yet: {model}." for model in left))])  # fmt: skip


def _sft_gaps(start: Start) -> Iterator[Interval]:
    for task, _ in enumerate(start.titles("curves")):
        for ratio in start.ratios:
            cells, ours, questions = start.curve(ratio, task)
            if ratio in cells and DENSE in start.models:
                at, gap = cells.index(ratio), gaps(ours, start.curve(DENSE, task)[1], questions).gap
                # One seed says nothing of another training.
                if len(ours) > 1:
                    yield Interval(gap.value[at], gap.low[at], gap.high[at])


def _entropy_gaps(start: Start) -> Iterator[Interval]:
    for task, _ in enumerate(start.titles("heads")):
        for ratio in start.ratios:
            if DENSE in start.models:
                yield entropy.change_of(start, task, entropy.ENTROPY, ratio, DENSE)


def _of_sft(found: Sequence[Start]) -> list[Block]:
    beside = [(start, one) for start in found for one in besides(start)]
    moved = [(start, one) for start in found for one in moves(start)]
    blocks = list[Block]()
    if beside:
        made = [one for _, one in beside]
        gaps = span((float(one.tested.gap.value[one.at]) for one in made), "+.3f")
        words = (
            "Trained through Top-k beside trained by full attention, both decoded at the ratio of the former: "
            f"{tally((one.word for one in made), '{word} in {count}')} of {len(made)} pairs, by {gaps}. At some k of the sweep "
            f"{sum(bool(one.better) for one in made)} are shown to be better and {sum(bool(one.worse) for one in made)} worse."
            f"{largest(made)}"
        )
        blocks += table(words, BESIDE, [_beside(*one) for one in beside])
    if moved:
        changes = span((float(one.change.value) for _, one in moved), "+.3f")
        words = (
            f"What each of {len(moved)} trainings moves: the weight on slot 0 changes by {changes}. Of the heads that read the "
            "answer most before, the table has how many still do, mean over seeds, and their weight on its key."
        )
        blocks += table(words, MOVED, [_moved(*one) for one in moved])
    return blocks


def largest(made: Sequence[Beside]) -> str:
    """A sentence on the largest gain of the sweep that is shown; "" where none is."""
    shown = [(one, one.cells.index(k)) for one in made for k in one.better]
    if not shown:
        return ""
    one, at = max(shown, key=lambda gain: float(gain[0].tested.gap.value[gain[1]]))
    return (
        f" The largest gain that is shown is at {one.cells[at]} of the keys, on {one.title.rpartition(', ')[0]} after training at "
        f"{one.ratio}: {one.ours[at]:.3f}, and {one.dense[at]:.3f} after dense training ({topk_sft.words(one.tested.gap[at], 3)}, "
        f"{one.tested.units})."
    )


def _beside(start: Start, one: Beside) -> list[str]:
    at, gap = one.at, topk_sft.words(one.tested.gap[one.at], 3)
    scores = f"{one.ours[at]:.3f}, {one.dense[at]:.3f}"
    sweep = "; ".join(", ".join(cells) or "none" for cells in (one.better, one.worse))
    # A sweep that lacks the ratio is decoded at another k.
    ratio = one.ratio if one.cells[at] == one.ratio else f"{one.ratio}, decoded at {one.cells[at]}"
    where = start.name, one.title, ratio
    return [*where, scores, gap, one.tested.units, one.word, sweep, topk_sft.words(one.full, 3)]


def _moved(start: Start, one: Moved) -> list[str]:
    sink = f"{one.before:.3f}", f"{one.after:.3f}", topk_sft.words(one.change, 3)
    read = [f"{one.common:.1f} of {one.readers}", *(f"{weight:.2f}" for weight in one.weights)]
    where = start.name, one.title, topk_sft.trained(one.arm)
    return [*where, *sink, *(read if one.readers else ["no head is seen to read", "", ""])]


def _of_entropy(found: Sequence[Start]) -> list[Block]:
    tasks = [(start, task, title) for start in found for task, title in enumerate(start.titles("heads"))]  # fmt: skip
    changed = [_changed(*one, arm) for one in tasks for arm in one[0].trained]
    ordered = [(start, title, arm, loss, entropy.predicts(start, task, arm, loss)) for start, task, title in tasks for arm in (BEFORE, *start.ratios) for loss in entropy.losses(start, task)[:1]]  # fmt: skip
    blocks = list[Block]()
    if changed:
        gaps = [gap for start in found for gap in _entropy_gaps(start)]
        words = (
            f"The mean entropy of attention over heads, before and after {len(changed)} trainings."
        )
        if gaps:
            verdicts = tally(map(_word, gaps), "{word} in {count}")
            by = span((float(gap.value) for gap in gaps), "+.2f")
            words += (
                f" After training through Top-k it differs from that after dense training by {by} nats: {verdicts} of "
                f"{len(gaps)} pairs."
            )
        blocks += table(words, CHANGED, changed)
    if ordered:
        words = (
            "Spearman's correlations over heads with the mass that a head's Top-k leaves out: "
            f"{span((float(one.recall.value) for *_, one in ordered), '+.2f')} of its entropy, "
            f"{span((float(one.mass.value) for *_, one in ordered), '+.2f')} of the entropy's share of ln n."
        )
        blocks += table(words, ORDERED, [_ordered(*one) for one in ordered])
    return blocks


def _changed(start: Start, task: int, title: str, arm: str) -> list[str]:
    before = float(start.heads(BEFORE, task, entropy.ENTROPY).mean())
    change = entropy.change_of(start, task, entropy.ENTROPY, arm, BEFORE)
    row = [start.name, title, topk_sft.trained(arm), f"{before:.2f}", entropy.words(change)]
    if arm == DENSE or DENSE not in start.models:
        return [*row, "", ""]
    beside = entropy.change_of(start, task, entropy.ENTROPY, arm, DENSE)
    return [*row, entropy.words(beside), _word(beside)]


def _word(change: Interval) -> str:
    """A verdict on entropy without its number, which has a column."""
    return entropy.verdict(change).partition(" (")[0]


def _ordered(start: Start, title: str, arm: str, loss: str, found: Ordering) -> list[str]:
    trained = "not yet" if arm == BEFORE else topk_sft.trained(arm)
    correlations = entropy.words(found.recall), entropy.words(found.mass)
    return [start.name, title, trained, f"{found.units}", loss.removeprefix(entropy.MASS), *correlations]  # fmt: skip
