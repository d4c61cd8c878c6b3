"""What was published, and what the committed results say of it: each finding with its numbers and a verdict."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
from committed import RESULTS, curves, folders, there

from topkit.errors import InputError
from topkit.experiments.runs import run_file
from topkit.experiments.study import exact_topk, stats
from topkit.experiments.study.course import SPLIT
from topkit.experiments.study.equality import EQUAL, equality
from topkit.experiments.study.findings import Findings
from topkit.experiments.study.heads import mcnemar, mended
from topkit.experiments.study.kept_model import note_of, require_first
from topkit.experiments.study.kinds import EXACT, family_of, manner_of, name_of
from topkit.experiments.study.law import Law, read_law, require_unchanged
from topkit.experiments.study.law_points import Predictions, predictions
from topkit.experiments.study.law_report import broken, outcome, steady
from topkit.experiments.study.law_report import sentences as law_sentences
from topkit.experiments.study.ordering import family_means, ordering
from topkit.experiments.study.planner import haystacks_needed
from topkit.experiments.study.predictors import predicted
from topkit.experiments.study.reading import RUNS, STUDY, study_of
from topkit.experiments.study.sentences import WORSE, said
from topkit.experiments.study.stats import Interval
from topkit.grammar import short
from topkit.indexers.budget import parse_budget
from topkit.indexers.spec import parse

SUPPORTED, NOT, UNDECIDED, NOT_RUN = "supported", "not supported", "undecided", "not run yet"
MARGIN = 0.01
# The results that these are read from, of those that are there.
EXACT_TOPK = ("exact-topk", "exact-topk-smollm2", "exact-topk-quick")
PRECISION = ("precision", "precision-smollm2", "precision-quick")


@dataclass(frozen=True)
class Answer:
    """A verdict, what it was asked on, and the numbers behind it, a line each."""

    verdict: str
    on: str
    numbers: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Claim:
    """A published finding: where it stands, what it says, what was asked, and the command that asks it."""

    name: str
    source: str
    says: str
    asked: str
    command: str
    answer: Callable[[], Answer]


def exact_equals() -> Answer:
    """At 5 % of the keys and more, where the paper has both nearly level."""
    names = there(*EXACT_TOPK) or there("smollm2", "fidelity-vs-accuracy")
    made = exact_topk.verdicts(list(curves(*names)), MARGIN)
    enough = [one for one in made if one.share >= 0.05]
    words = {one.found.word for one in enough}
    verdict = NOT if WORSE in words else SUPPORTED if words == {EQUAL} else UNDECIDED
    numbers = list[str]()
    for one in enough:
        line = (
            f"{one.curve.title}, {one.share:.1%} of the keys: full attention {said(one.dense)}, exact Top-k "
            f"{said(one.exact)}, difference {said(one.found.gap, signed=True)}: {one.found.word}"
        )
        numbers.append(f"{line}; {one.found.plan}" if one.found.plan else line)
    return Answer(verdict if enough else NOT_RUN, folders(names), numbers)


def rises_in_a_manner() -> Answer:
    """Of each manner of loss, the largest precision against the smallest, on the same haystacks."""
    names = there(*PRECISION) or there("fidelity-vs-accuracy")
    numbers, rises = list[str](), list[bool]()
    for curve in curves(*names):
        found, groups = Findings(curve), dict[str, list[int]]()
        for place in found.compared("oracle"):
            groups.setdefault(manner_of(curve.cells[place]), []).append(place)
        for places in (places for places in groups.values() if len(places) > 1):
            low, high = (pick(places, key=lambda p: curve.mean("recall")[p]) for pick in (min, max))
            gap = found.against(low)[high]
            rises.append(float(gap.low) > 0)
            numbers.append(
                f"{curve.title}: {name_of(curve.cells[high])} against {name_of(curve.cells[low])}: "
                f"{said(gap, signed=True)}"
            )
    verdict = SUPPORTED if rises and all(rises) else UNDECIDED
    return Answer(verdict if numbers else NOT_RUN, folders(names), numbers)


def rises_over_methods() -> Answer:
    """Whether accuracy rises with recall from one family of real indexers to the next, and what predicts it."""
    names = there(*PRECISION, "smollm2", "fidelity-vs-accuracy")
    numbers, trends = list[str](), list[str]()
    for curve in curves(*names):
        found = Findings(curve)
        places = found.compared("real")
        families = [family_of(curve.cells[place]) for place in places]
        word, goal = found.goal(places)
        if len(set(families)) < 5 or word != "accuracy":
            continue
        recall, mass = (
            family_means(curve.fidelity[m][places], families) for m in ("recall", "mass")
        )
        order = ordering(recall, mass, family_means(goal, families), curve.questions)
        trends.append("yes" if order.recall.low > 0 else "no" if order.recall.high < 0 else "open")
        best = [one for one in predicted(found) if one.real is not None]
        errors = ", ".join(f"{one.name} {said(one.real)}" for one in best if one.real)
        numbers.append(
            f"{curve.title}, {len(curve.haystacks)} haystacks, k = {found.budget}: Spearman of recall and accuracy over {len(set(families))} families "
            f"{said(order.recall)}; mean error on a family left out: {errors}"
        )
    verdict = SUPPORTED if set(trends) == {"yes"} else NOT if "no" in trends else UNDECIDED
    return Answer(verdict if numbers else NOT_RUN, folders(names), numbers)


def longer_contexts() -> Answer:
    """The loss of exact Top-k at 1/32 of the keys, from the shortest context to the longest."""
    numbers, losses = list[str](), list[tuple[int, Interval]]()
    names = there("smollm2")
    for curve in curves(*names):
        dense, exact = curve.place(None), curve.place(EXACT, parse_budget(curve.length // 32))
        if dense is not None and exact is not None:
            loss = stats.paired(curve.rates[[exact, dense]], curve.trials, 0)[1]
            losses.append((curve.length, loss))
            numbers.append(f"{curve.title}: exact Top-k at k = {curve.length // 32} loses {said(loss)}")  # fmt: skip
    if len(losses) < 2:
        return Answer(NOT_RUN, folders(names), numbers)
    (short_, one), (long, other) = losses[0], losses[-1]
    gap = _apart(other, one)
    numbers.append(f"the loss at {long:,} tokens minus that at {short_:,}: {said(gap, signed=True)}")  # fmt: skip
    verdict = SUPPORTED if gap.high < 0 else NOT if gap.low > 0 else UNDECIDED
    return Answer(verdict, folders(names), numbers)


def _apart(one: Interval, other: Interval) -> Interval:
    """The difference of two independent estimates, their intervals joined."""
    value = one.value - other.value
    low = value - np.hypot(one.value - one.low, other.high - other.value)
    return Interval(value, low, value + np.hypot(one.high - one.value, other.value - other.low))


def missed_key() -> Answer:
    """What answers score whose key all reading heads missed; before that is known, what a rare loss costs."""
    if of_law := list(law_runs()):
        found = [(one, broken(one)) for _, one in of_law if one.missed]
        numbers = [
            f"{one.model}: the {sum(n for _, n in one.missed):,} answers with a step whose key all reading heads missed "
            f"score {said(score)}"
            for one, score in found
        ]
        numbers.append(
            "that the miss is the cause was not tested: full attention fails some of these questions, too"
        )
        ends = [float(score.high) for _, score in found]
        verdict = SUPPORTED if ends and max(ends) < 0.1 else NOT if ends and min(ends) > 0.5 else UNDECIDED  # fmt: skip
        return Answer(verdict, folders(_of_law()), numbers)
    numbers = list[str]()
    for curve in curves("fidelity-vs-accuracy", "smollm2"):
        place = curve.place(parse("degraded(0.95)"))
        exact = None if place is None else curve.place(EXACT, curve.cells[place].budget)
        if place is not None and exact is not None:
            gap = stats.paired(curve.rates, curve.trials, exact)[place]
            numbers.append(
                f"{curve.title}: exact Top-k at k = {curve.cells[place].budget} that loses each key with a chance of "
                f"0.05, anew at each step and head: {said(gap, signed=True)} of its accuracy"
            )
    on = f"{folders(there('fidelity-vs-accuracy', 'smollm2'))}, which did not record whether the lost key was the answer's (`hit`)"  # fmt: skip
    return Answer(UNDECIDED if numbers else NOT_RUN, on, numbers)


def fp4_keys() -> Answer:
    """What the published numbers can show by themselves, and what rows of 4 bits and 8 say here."""
    numbers = list[str]()
    for where, one, other in (("sglang#26209", 0.98, 0.965), ("sglang#27059", 0.955, 0.93)):
        n, rates = 200, np.array([one, other])
        each = stats.accuracy(
            np.stack([np.arange(n) < round(x * n) for x in rates]).astype(float), np.ones(n)
        )
        gap = _apart(each[1], each[0])
        numbers.append(
            f"{where}: GSM8K {one:.3f} with fp8 keys, {other:.3f} with fp4: {said(gap, signed=True, digits=3)} if 200 "
            "questions were asked, of which all four numbers are multiples (unpaired; how many is not said)"
        )
    numbers.append(
        "sglang#30546, the same keys on DeepSeek-V3.2, five runs each: 0.957 with fp8, 0.958 with fp4"
    )
    needed = haystacks_needed(MARGIN, 0.03)
    assert needed is not None
    numbers.append(
        f"to call two indexers equal within {MARGIN:g} that differ on three questions of a hundred takes about "
        f"{needed:,} questions (GSM8K's test split has 1,319)"
    )
    for curve in curves("fidelity-vs-accuracy", "smollm2"):
        places = [
            curve.place(parse(f"quantized(dtype='{t}')"), curve.budget)
            for t in ("fp8_e4m3", "int4")
        ]
        eight, four = places
        if eight is not None and four is not None:
            found = equality(curve, four, eight, MARGIN)
            recall, mass = curve.mean("recall"), curve.mean("mass")
            numbers.append(
                f"{curve.title}, k = {curve.budget}: keys of 4 bits (int4) against 8 (fp8): recall {recall[four]:.2f} "
                f"and {recall[eight]:.2f}, mass {mass[four]:.3f} and {mass[eight]:.3f}, accuracy "
                f"{said(found.gap, signed=True)}: {found.word}{'; ' + found.plan if found.plan else ''}"
            )
    on = "the published numbers, and rows of the bundled model and SmolLM2; neither DeepSeek-V4 nor GSM8K was run"
    return Answer(UNDECIDED, on, numbers)


def identities() -> Answer:
    on = "drawn scores, ties, groups and lists that are not the best, in float64"
    return Answer(
        SUPPORTED,
        on,
        [
            "exact, to float32's rounding: tests/fidelity/test_identities.py, which also holds the output error to total variation times the distance of what was kept from what was not"
        ],
    )  # fmt: skip


def heads() -> Answer:
    """Which KV groups help alone. That few do is no proof that few are needed; that many do would speak against it."""
    names = [*(there("heads") or there("heads-quick")), *there("heads-smollm2")]
    found = [(curve, one) for curve in curves(*names) for one in mended(curve)]
    numbers = [
        f"{curve.title}, {short(one.base.indexer)}: {len(one.helping)} of {len(one.groups)} groups are shown to raise "
        f"{one.score:.2f} towards {one.exact:.2f} by being exact alone ({len(curve.haystacks)} haystacks; of fewer than "
        f"{least_of(len(one.groups))} that differ nothing can be shown)"
        for curve, one in found
        if one.base.indexer is not None
    ]
    shares = [len(one.helping) / len(one.groups) for _, one in found]
    numbers.append(
        "a group that helps alone is one that matters; others may matter together, and exact Top-k everywhere but in one "
        "group was not run"
    )
    verdict = NOT if shares and max(shares) > 0.25 else UNDECIDED
    return Answer(verdict if found else NOT_RUN, folders(names), numbers if found else [])


def least_of(groups: int, level: float = 0.05) -> int:
    """Haystacks that must differ, all one way, before McNemar's test with Holm's correction shows the first group."""
    count = np.arange(1, 100)
    return int(count[mcnemar(count, 0 * count) * groups <= level][0])


def retrieval_heads() -> Answer:
    """Whether the heads that read answers on average are those of each step, in a dense pass."""
    found = [(one, steady(one)) for _, one in law_runs()]
    numbers = [
        f"{one.model}: at {said(share)} of the steps the head with the largest weight on the answer's key is one of the "
        f"{len(one.reading.heads)} that are so on average"
        for one, share in found
    ]
    lows, highs = [float(x.low) for _, x in found], [float(x.high) for _, x in found]
    verdict = UNDECIDED if not found else NOT if min(lows) > 0.9 else SUPPORTED if max(highs) < 0.9 else UNDECIDED  # fmt: skip
    return Answer(verdict if found else NOT_RUN, folders(_of_law()), numbers)


def law() -> Answer:
    """The project's own: each model's verdict, observed."""
    numbers, words = list[str](), list[str]()
    for registered, found in law_runs():
        one = outcome(registered, found, "observed")
        words.append(UNDECIDED if one is None else one.word)
        numbers += [
            f"{found.model}: {line.removesuffix('.')}" for line in law_sentences(registered, found)
        ]
    verdict = NOT if "refuted" in words else SUPPORTED if words and set(words) == {"held"} else UNDECIDED  # fmt: skip
    return Answer(verdict if words else NOT_RUN, folders(_of_law()), numbers)


def law_runs() -> Iterator[tuple[Law, Predictions]]:
    """What the law predicts of each model that was run: of the whole studies, else of the quick one."""
    for name in _of_law():
        folder, study = RESULTS / name, study_of(RESULTS / name / STUDY)
        registered = read_law(study["law"]["name"])
        require_unchanged(registered, study["law"]["sha256"], folder)
        own = [{"model": study.get("model", ""), "folder": ".", SPLIT: SPLIT}]
        for run in study.get(RUNS, own):
            places = folder / run["folder"], folder / run[SPLIT]
            if registered.kept.is_called(run["model"]):
                require_first(registered, places[0])
                if not note_of(registered, places[0]).exists():
                    raise InputError(f"{note_of(registered, places[0])} is missing: it says which run of the kept model was the first")  # fmt: skip
            if (places[0] / run_file.NAME).exists():
                yield registered, predictions(run["model"], *places, registered)


def _of_law() -> list[str]:
    """The results that the law's claims are read from: its two models', and the one that was kept for the end."""
    runs = (there("law") or there("law-quick")), there("law-smollm2"), there("law-third")
    return [name for several in runs for name in several]
