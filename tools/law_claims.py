"""What results say of the law of topkit: its verdicts and rivals, a key that reading heads miss, and those heads by step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from claimed import (
    NOT,
    NOT_RUN,
    SUPPORTED,
    UNDECIDED,
    Answer,
    by_setting,
    lines,
    span,
    table,
    tally,
)
from committed import RESULTS, curves, folders, there

from topkit.errors import InputError
from topkit.experiments.runs import run_file
from topkit.experiments.study import stats
from topkit.experiments.study.blocks import Block
from topkit.experiments.study.course import SPLIT
from topkit.experiments.study.curve import Curve
from topkit.experiments.study.kept_model import note_of, require_first
from topkit.experiments.study.kinds import EXACT
from topkit.experiments.study.law import Law, read_law, require_unchanged
from topkit.experiments.study.law_points import Predictions, predictions
from topkit.experiments.study.law_report import (
    UNTESTED,
    Outcome,
    broken,
    counted,
    fitted,
    outcome,
    steady,
    unbroken,
    uncounted,
)
from topkit.experiments.study.law_rows import FORMS
from topkit.experiments.study.law_verdict import HELD, REFUTED
from topkit.experiments.study.reading import RUNS, STUDY, study_of
from topkit.experiments.study.sentences import said
from topkit.experiments.study.stats import Interval
from topkit.indexers.spec import parse

VERDICTS = (
    "model",
    "form",
    "verdict",
    "mean error on a family",
    "by chance",
    "slope",
    "intercept",
    "cells",
    "families",
    "haystacks a task",
)
READING = ("model", "reading heads (layer.head)", "heaviest at", "answers with a missed key", "they score")  # fmt: skip


def law() -> Answer:
    """The project's own: each model's verdict, observed."""
    runs = list(law_runs())
    observed = [outcome(registered, found, "observed") for registered, found in runs]
    words = [UNDECIDED if one is None else one.word for one in observed]
    verdict = NOT if REFUTED in words else SUPPORTED if words and set(words) == {HELD} else UNDECIDED  # fmt: skip
    if not runs:
        return Answer(NOT_RUN, folders(_of_law()))
    made = [one for law, found in runs for one in _outcomes(law, found)]
    rows = [_verdict(one) for one in made]
    models = dict.fromkeys(one.model for one in made)
    untested = [f"{found.model}: {UNTESTED}" for _, found in runs if found.model not in models]
    why = dict.fromkeys(f"{one.model}: {one.why}." for one in made if one.word == UNDECIDED)
    left = [f"{found.model}: {line}" for law, found in runs for line in uncounted(law, found)]
    by_rival = [(found.model, {name: one.error for name, one in fitted(counted(law, found))}) for law, found in runs]  # fmt: skip
    return Answer(
        verdict,
        folders(_of_law()),
        [
            *(table(_of_verdicts(runs[0][0], words, made), VERDICTS, rows) if rows else []),
            *lines(*why, *untested, *left),
            *_rivals([one for one in by_rival if one[1]]),
            *table(_of_reading([found for _, found in runs]), READING, [_reading(found) for _, found in runs]),
        ],
    )  # fmt: skip


def _outcomes(law: Law, found: Predictions) -> Iterator[Outcome]:
    for form in FORMS:
        if (one := outcome(law, found, form)) is not None:
            yield one


def _verdict(one: Outcome) -> list[str]:
    error, chance = said(one.law.error, digits=3), f"{one.law.by_chance:.3f}"
    line = said(one.law.slope), said(one.law.intercept, signed=True)
    counts = f"{one.cells}", f"{one.families}", f"{one.haystacks}"
    return [one.model, one.form, one.word, error, chance, *line, *counts]


def _of_verdicts(law: Law, words: Sequence[str], made: Sequence[Outcome]) -> str:
    """words: the verdicts of the observed form, a model each, which the law stands and falls with."""
    own = [one for one in made if one.form == "observed"]
    most = sum(float(one.law.error.value) > law.error for one in own)
    return (
        f"The verdict is that of the observed form, on {len(words)} models: {tally(words)}. On {most} of them the mean error is "
        f"above the {law.error:g} that refutes the law; *by chance* is what sampling of haystacks alone leaves of it. "
        "*Slope* and *intercept* are of the line through the cells: a calibrated law has 1 and 0."
    )


def _rivals(by_rival: Sequence[tuple[str, dict[str, Interval]]]) -> list[Block]:
    """A table of curves that are fitted to all other families, by what they are fitted to."""
    if not by_rival:
        return []
    metrics = list(dict.fromkeys(name for _, own in by_rival for name in own))
    best = [min(own, key=lambda name: float(own[name].value)) for _, own in by_rival]
    words = (
        "Beside the law, curves that are fitted to the other families: the mean error on a family that each predicts. The "
        f"least is from {tally(best, '`{word}` on {count}')} of {len(best)} models."
    )
    rows = [
        [model, *(said(own[name], digits=3) if name in own else "" for name in metrics)]
        for model, own in by_rival
    ]
    return table(words, ("model", *(f"`{name}`" for name in metrics)), rows)


def _reading(found: Predictions) -> list[str]:
    return [
        found.model,
        ", ".join(f"{layer}.{head}" for layer, head in found.reading.heads),
        said(steady(found)),
        _count(found.missed),
        said(broken(found)) if found.missed else "",
    ]


def _of_reading(several: Sequence[Predictions]) -> str:
    shares = span((float(steady(one).value) for one in several), ".2f")
    scores = span((float(broken(one).value) for one in several if one.missed), ".2f")
    broke = f"; answers with a step whose key all of them missed score {scores}" if scores else ""
    return (
        "Reading heads, as a dense pass over haystacks of their own shows them: at "
        f"{shares} of its steps the head with the largest weight on the answer's key is one of them{broke}."
    )


def missed_key() -> Answer:
    """What answers score whose key all reading heads missed; before that is known, what a rare loss costs."""
    of_law = [found for _, found in law_runs()]
    if not of_law:
        return _rare_loss()
    found = [(one, broken(one)) for one in of_law if one.missed]
    if not found:
        return Answer(UNDECIDED, folders(_of_law()))
    rows = [
        [one.model, _count(one.missed), said(score), *((_count(one.others), said(unbroken(one))) if one.others else ("0", ""))]
        for one, score in found
    ]  # fmt: skip
    scores = span((float(score.value) for _, score in found), ".2f")
    others = span((float(unbroken(one).value) for one, _ in found if one.others), ".2f")
    beside = f", all other answers of the same runs {others}" if others else ""
    words = (
        f"With {len(found)} models, answers with a step whose key all reading heads missed score {scores}{beside}. That the miss "
        "is the cause was not tested: full attention fails some of these questions, too, and poor indexers miss more besides."
    )
    ends = [float(score.high) for _, score in found]
    verdict = SUPPORTED if ends and max(ends) < 0.1 else NOT if ends and min(ends) > 0.5 else UNDECIDED  # fmt: skip
    return Answer(verdict, folders(_of_law()), table(words, ("model", "such answers", "score", "other answers", "their score"), rows))  # fmt: skip


def _count(answers: Sequence[tuple[float, int]]) -> str:
    return f"{sum(count for _, count in answers):,}"


def _rare_loss() -> Answer:
    names, rows = (
        there("fidelity-vs-accuracy", "smollm2", "smollm2-ruler"),
        list[tuple[Curve, list[str]]](),
    )
    for curve in curves(*names):
        place = curve.place(parse("degraded(0.95)"))
        exact = None if place is None else curve.place(EXACT, curve.cells[place].budget)
        if place is not None and exact is not None:
            gap = stats.paired(curve.rates, curve.trials, exact)[place]
            rows.append((curve, [str(curve.cells[place].budget), said(gap, signed=True)]))
    if not rows:
        return Answer(NOT_RUN, folders(names))
    words = (
        "Exact Top-k that loses each key with a chance of 0.05, anew at each step and head, minus exact Top-k. Whether the "
        "lost key was the answer's (`hit`) was not recorded."
    )
    return Answer(UNDECIDED, folders(names), by_setting(words, ("k", "accuracy"), rows))


def retrieval_heads() -> Answer:
    """Whether the heads that read answers on average are those of each step, in a dense pass."""
    found = [(one, steady(one)) for _, one in law_runs()]
    if not found:
        return Answer(NOT_RUN, folders(_of_law()))
    lows, highs = [float(x.low) for _, x in found], [float(x.high) for _, x in found]
    verdict = NOT if min(lows) > 0.9 else SUPPORTED if max(highs) < 0.9 else UNDECIDED
    rows = [[one.model, f"{len(one.reading.heads)}", said(share)] for one, share in found]
    words = (
        f"At {span((float(share.value) for _, share in found), '.2f')} of the steps the head with the largest weight on the "
        "answer's key is one of those that are so on average."
    )
    return Answer(verdict, folders(_of_law()), table(words, ("model", "heads on average", "steps at which it is one"), rows))  # fmt: skip


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
