"""The parts of README.md that are made from results: what was found, and the paper's claims beside ours."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from claimed import MARGIN, Claim
from claims import (
    CLAIMS,
    ENTROPY,
    EXACT_EQUALS_FROM_ANSWER,
    EXACT_EQUALS_FROM_QUESTION,
    RISES,
    TRAINED,
)
from committed import command_of
from exact_claims import DIGITS
from law_claims import law_runs
from papers.table import rows as of_papers

from topkit.cli.listing import markdown
from topkit.experiments.study import exact_topk
from topkit.experiments.study.blocks import Paragraph
from topkit.experiments.study.curve import Curve
from topkit.experiments.study.curves import load
from topkit.experiments.study.equality import EQUAL
from topkit.experiments.study.findings import Findings
from topkit.experiments.study.kinds import EXACT
from topkit.experiments.study.law_report import counted, fitted, outcome
from topkit.experiments.study.models_compared import Comparison, comparisons
from topkit.experiments.study.reading import load_study
from topkit.experiments.study.sentences import WORSE, said
from topkit.grammar import short
from topkit.indexers.budget import Budget
from topkit.indexers.spec import parse

RESULTS = Path(__file__).parents[1] / "results"
ONE_MODEL, TWO_MODELS, ORACLES = "smollm2", "carry-over", "fidelity-vs-accuracy"
RULER, BOOKS = "smollm2-ruler", "smollm2-books"
EXACT_TOPK, BUNDLED_EXACT_TOPK = "exact-topk-smollm2", "exact-topk"


@cache
def found(name: str) -> list[Findings]:
    """What each setting of a study's results shows."""
    return [Findings(curve) for curve in load(RESULTS / name)]


@cache
def of_two_models() -> Comparison:
    (both,) = comparisons(load_study(RESULTS / TWO_MODELS))
    return both


def needles_at_4096(both: Comparison) -> list[tuple[str, Curve, Budget]]:
    """Each model, the needles that it was asked for in 4,096 tokens, and its k."""
    found = list[tuple[str, Curve, Budget]]()
    for model, curves, (k,) in zip(both.models, both.curves, both.budgets, strict=True):
        (curve,) = (c for c in curves if c.length == 4096 and c.task.startswith("niah"))
        found.append((model, curve, k))
    return found


def what_was_found() -> str:
    """A sentence each; one whose numbers no longer bear its words ends the program."""
    by_length, both = {one.curve.length: one for one in found(ONE_MODEL)}, of_two_models()
    lines = (
        _budget(by_length[4096]),
        _four_bits(both),
        _recall(by_length[2048]),
        _mass(by_length[4096]),
        _models(both),
        _weight(),
    )
    return "\n".join(f"{number}. {line}" for number, line in enumerate(lines, 1))


def paper_claims() -> str:
    """What arXiv 2512.03494 shows, what came of it here, and the verdict and command of docs/claims.md."""
    rises, trained, entropy = (_claim(name) for name in (RISES, TRAINED, ENTROPY))
    lines = [
        _equal(),
        _as_claimed(
            "Accuracy rises with the share of exact keys among those chosen (precision).",
            rises,
            _precision(),
            ORACLES,
        ),
        _lightning(),
        _heads(),
        _as_claimed(
            "Training with Top-k attention (SFT) helps at small k.", trained, _trained(trained)
        ),
        _as_claimed("That training lowers the entropy of attention.", entropy, _trained(entropy)),
    ]
    heads = ("the paper", "command", "here")
    return markdown([dict(zip(heads, line, strict=True)) for line in lines])


def _claim(name: str) -> Claim:
    return next(claim for claim in CLAIMS if claim.name == name)


def _equal() -> tuple[str, str, str]:
    """Exact Top-k beside full attention: the verdicts of both protocols."""
    answer, question = (
        _claim(name).answer().verdict
        for name in (EXACT_EQUALS_FROM_ANSWER, EXACT_EQUALS_FROM_QUESTION)
    )
    if answer == question:
        verdicts = f"**{answer.capitalize()}**, from the answer on and from the question on alike"
    else:
        verdicts = (
            f"**{answer.capitalize()}** from the answer on, **{question}** from the question on"
        )
    return (
        "Decoding with exact Top-k is as good as full attention, with about 5 % of the keys (8B, 128K).",
        f"`{command_of(EXACT_TOPK)}`",
        f"{verdicts}: {_as_good_as_full()}",
    )


def _as_claimed(
    paper: str, claim: Claim, numbers: str = "", results: str = ""
) -> tuple[str, str, str]:
    """The verdict of the claims' page stands first, so that the two pages cannot disagree.

    results: those that the numbers are of, whose command is then the one that is named.
    """
    verdict = f"**{claim.answer().verdict.capitalize()}**"
    command = command_of(results) if results else claim.command
    return paper, f"`{command}`", f"{verdict}: {numbers}" if numbers else f"{verdict}."


def _trained(claim: Claim) -> str:
    """What the claims' page says first of a study that trains, and where more stands; "" before it is run."""
    told = claim.answer().found
    if not told:
        return ""
    assert isinstance(told[0], Paragraph)
    text = told[0].text
    return f"{text[0].lower()}{text[1:]} ([Results](docs/findings.md#training-through-top-k).)"


def _budget(one: Findings) -> str:
    curve = one.curve
    dense = place_of(curve, None, None)
    places = {k: curve.place(EXACT, k) for k in curve.budgets}
    scores = [(k, float(one.accuracy.value[at])) for k, at in places.items() if at is not None]
    (first, least), *others = scores
    _hold(least < scores[-1][1] - 0.2, "small budgets cost accuracy")
    listed = ", ".join(f"{score:.2f} with {k}" for k, score in others)
    return (
        f"**A small budget costs accuracy, even with exact Top-k.** With full attention SmolLM2 answers "
        f"{one.accuracy[dense].value:.2f} of the questions at {curve.length:,} tokens. With exact Top-k it answers "
        f"{least:.2f} if each head keeps {first} keys, {listed}."
    )


def _four_bits(both: Comparison) -> str:
    indexer, words = parse("quantized:dtype=int4"), list[str]()
    for model, curve, k in needles_at_4096(both):
        gap = Findings(curve).to_exact(place_of(curve, indexer, k))
        assert gap is not None
        _hold(float(gap.low) < 0 < float(gap.high), "int4 and exact Top-k are not told apart")
        words.append(f"{said(gap, signed=True)} with {_named(model)}")
    return (
        f"**No difference between keys of 4 bits and exact keys is shown.** The accuracy of `{short(indexer)}` "
        f"minus that of exact Top-k is {' and '.join(words)}."
    )


def _recall(one: Findings) -> str:
    curve = one.curve
    parts = list[str]()
    for spec, fails in (("degraded(0.95)", True), ("sampled(quantized(dtype=int4))", False)):
        indexer = parse(spec)
        place = place_of(curve, indexer, curve.budget)
        gap = one.to_exact(place)
        assert gap is not None
        _hold(float(gap.high) < 0 if fails else float(gap.low) > 0, "recall misleads")
        recall = curve.mean("recall")[place]
        word = "below" if fails else "above"
        parts.append(
            f"`{short(indexer)}` has a recall of {recall:.2f} and scores {word} exact Top-k ({said(gap, True)})"
        )
    return (
        f"**Recall alone misleads.** With SmolLM2 at {curve.length:,} tokens and k = {curve.budget}, "
        f"{', while '.join(parts)}."
    )


def _mass(one: Findings) -> str:
    curve, indexer = one.curve, parse("reuse(exact(),every=2)")
    place = place_of(curve, indexer, curve.budget)
    mass, score = curve.mean("mass")[place], one.accuracy[place]
    _hold(mass > 0.7 and float(score.high) < 0.2, "mass is no guarantee")
    return (
        f"**Attention mass is no guarantee.** `{short(indexer)}`, in which every second layer reuses the list of the layer "
        f"before, keeps {mass:.2f} of SmolLM2's attention mass and answers {said(score)} of the questions."
    )


def _models(both: Comparison) -> str:
    indexer, scores = parse("sampled(quantized(dtype=int4))"), list[str]()
    for model, curve, k in needles_at_4096(both):
        score = Findings(curve).accuracy[place_of(curve, indexer, k)]
        scores.append(f"{said(score)} with {_named(model)}")
    return (
        f"**What wins on one model may lose on another.** On a task that each model can nearly do, `{short(indexer)}` "
        f"answers {' but '.join(scores)}, at 4,096 tokens. Over {both.found.indexers} indexers, by their means over three "
        f"settings a model, Spearman's correlation of the two orders is {said(both.found.of_indexers)}."
    )


def _weight() -> str:
    """Of each model that the law was run on: three errors of curves, and that of the formula."""
    curves, formulas, heads, most = list[str](), list[str](), 0, 0.0
    for law, found in law_runs():
        points, model = counted(law, found), _named(found.model)
        own = {name: one.error for name, one in fitted(points)}
        _hold(float(own["ws"].high) < float(own["recall"].low), "weight explains")
        _hold(min(own, key=lambda name: float(own[name].value)) == "ws", "weight explains best")
        formula = outcome(law, found, "observed")
        assert formula is not None
        families, tasks = (len({getattr(point, x) for point in points}) for x in ("family", "task"))
        run = f"{tasks} tasks, at least {formula.haystacks} texts each, {families} ways"
        errors = _and([said(own[name], digits=3) for name in ("ws", "mass", "recall")])
        curves.append(f"{errors} with {model} ({run})")
        formulas.append(f"{said(formula.law.error, digits=3)} with {model} ({formula.word})")
        heads, most = law.heads, law.error
    return (
        "**Weight on the answer's key explains accuracy; recall does not.** Leave out one way to select or to lose keys, fit a "
        f"curve to the others, and predict the accuracy of the one left out. From the weight that {heads} heads give to the "
        "answer's key after selection, from mass and from recall, both over all heads, the mean errors are "
        f"{'; '.join(curves)}. The weight is measured in the run itself: it explains a loss, and does not forecast it. The "
        f"formula that was registered beforehand, with its constants, errs by {_and(formulas)}; {most:g} was allowed."
    )


def _and(words: Sequence[str]) -> str:
    return f"{', '.join(words[:-1])} and {words[-1]}" if len(words) > 1 else words[0]


def _as_good_as_full() -> str:
    """Of SmolLM2: what 5 % of the keys keep, over the question and answer, or the answer alone."""
    words = list[str]()
    for one in exact_topk.verdicts(load_study(RESULTS / EXACT_TOPK), MARGIN):
        if str(one.curve.cells[one.place].budget) == "5%":
            curve = one.curve
            words.append(
                f"{said(one.exact)} beside {said(one.dense)} ({curve.task.partition(':')[0]}, {curve.length:,} tokens, sparse from the "
                f"{curve.sparse_from} on, {len(curve.haystacks):,} texts; {said(one.found.gap, True, DIGITS)})"
            )
    return f"what SmolLM2 answers with 5 % of the keys, beside what it answers with all: {'; '.join(words)}. {_bundled_equal()} ([results](docs/claims.md))."


def _bundled_equal() -> str:
    """Of the bundled model: in how many settings 5 % of the keys are shown to be as good as all."""
    made = exact_topk.verdicts(load_study(RESULTS / BUNDLED_EXACT_TOPK), MARGIN)
    own = [one for one in made if str(one.curve.cells[one.place].budget) == "5%"]
    equal = [len(one.curve.haystacks) for one in own if one.found.word == EQUAL]
    _hold(bool(equal) and not any(one.found.word == WORSE for one in own), "some are equal")
    rest = "" if len(equal) == len(own) else "; the others are undecided"
    return (
        f"With the bundled model the two are equal within {MARGIN:g} in {len(equal)} of {len(own)} settings, of at least "
        f"{min(equal):,} texts{rest}"
    )


def _precision() -> str:
    (one,) = found(ORACLES)
    told = re.search(
        r"(\d+) oracles .* is ([\d.]+) for recall and ([\d.]+) for mass",
        "\n".join(one.sentences()),
    )
    _hold(told is not None, "oracles are ordered")
    assert told is not None
    ways, recall, mass = told.groups()
    return (
        f"which keys are lost matters more. Over {ways} ways to lose keys, Spearman's correlation of accuracy is "
        f"{recall} with precision, {mass} with attention mass ([results](docs/findings.md#the-bundled-model))."
    )


def _lightning() -> tuple[str, str, str]:
    (row,) = [row for row in of_papers() if row["claim"] == "lightning-precision"]
    value, low, high = (f"{float(row[name]):.2f}" for name in ("value", "low", "high"))
    return (
        "DeepSeek-V3.2's lightning indexer finds about 60 % of the exact keys.",
        "`python tools/paper_figures.py lightning-precision`",
        f"{value} [{low}, {high}], of one trained for the bundled model ([results](docs/methods.md#figures-of-papers)).",
    )


def _heads() -> tuple[str, str, str]:
    figure = RESULTS / ORACLES / "figures"
    (path,) = figure.glob("recall-by-head-*.png")
    return (
        "That precision differs by layer and head.",
        "`topkit study full --out runs/full`",
        f"[A map of each indexer's recall](results/{path.relative_to(RESULTS)}).",
    )


def place_of(curve: Curve, indexer: object, k: object) -> int:
    place = curve.place(indexer, k)  # type: ignore[arg-type]
    assert place is not None, f"{curve.title} has no {indexer} at {k}"
    return place


def _named(model: str) -> str:
    return {
        "reference": "the bundled model",
        "smollm2": "SmolLM2",
        "third/model": "a third model of 4 M parameters",
    }.get(model, f"`{model}`")


def _hold(true: bool, words: str) -> None:
    if not true:
        raise SystemExit(f"tools/front_page.py says that {words}; the results no longer do")
