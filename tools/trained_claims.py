"""What the studies that train say of published findings: Top-k in training, and the entropy of attention."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from claimed import NOT, NOT_RUN, SUPPORTED, UNDECIDED, Answer
from committed import RESULTS, folders, there

from topkit.experiments.study.reading import STUDY, study_of
from topkit.experiments.study.stats import Interval
from topkit.experiments.train import entropy, topk_sft
from topkit.experiments.train.arms import DENSE
from topkit.experiments.train.arms import PARTS as PARTS
from topkit.experiments.train.found import Start, gaps, starts


def sft_helps() -> Answer:
    """Each training at a ratio against the dense one, decoded at that ratio."""
    return _answer("topk-sft", topk_sft.sentences, _sft_gaps, 1)


def entropy_falls() -> Answer:
    """The entropy after each training at a ratio minus that after the dense one."""
    return _answer("entropy", entropy.sentences, _entropy_gaps, -1)


def _answer(
    study: str,
    sentences: Callable[[Start], Sequence[str]],
    differences: Callable[[Start], Iterator[Interval]],
    sign: int,
) -> Answer:
    """Supported where every interval lies on the claimed side of nought; not, where one lies on the other."""
    names = there(study) or there(f"{study}-quick")
    found = [
        one for name in names for one in starts(RESULTS / name, study_of(RESULTS / name / STUDY))
    ]
    numbers = [line.removesuffix(".") for start in found for line in sentences(start)]
    made = [gap for start in found for gap in differences(start)]
    lows = [float(min(sign * gap.low, sign * gap.high)) for gap in made]
    highs = [float(max(sign * gap.low, sign * gap.high)) for gap in made]
    verdict = SUPPORTED if made and min(lows) > 0 else NOT if made and min(highs) < 0 else UNDECIDED
    return Answer(verdict if found else NOT_RUN, folders(names), numbers)


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
