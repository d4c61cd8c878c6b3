"""The answer of a report: which selector may be used, at what k, at what cost, in sentences made from the numbers."""

# pyright: strict
from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from topkit.experiments.study.cell_rows import Row
from topkit.experiments.study.cost_words import at_cost
from topkit.experiments.study.curve import Curve
from topkit.experiments.study.findings import Findings
from topkit.experiments.study.haystacks import as_one
from topkit.experiments.study.sentences import BETTER, FLOOR, GOOD, UNDECIDED, WORSE, said
from topkit.indexers.budget import Budget

# Rows of the first table.
MOST = 5
# Of a family, before others have their turn.
ALIKE = 2
_ORDER = {GOOD: 0, BETTER: 0, UNDECIDED: 1, FLOOR: 2, "": 2, WORSE: 3}


@dataclass(frozen=True)
class Answer:
    """What a model's curves say together at a budget; `each`: the findings of every setting in it."""

    findings: Findings
    each: tuple[Findings, ...]

    @property
    def model(self) -> str:
        return self.findings.curve.model

    @property
    def budget(self) -> str:
        return str(self.findings.budget or "")

    @property
    def rows(self) -> list[Row]:
        return self.findings.rows

    @cached_property
    def shown(self) -> list[Row]:
        """The rows of the budget."""
        return [row for row in self.rows if row["budget"] == self.budget]

    @property
    def real(self) -> list[Row]:
        return [row for row in self.shown if row["kind"] == "real"]

    @property
    def exact(self) -> Row | None:
        return next((row for row in self.shown if row["kind"] == "exact"), None)

    @property
    def holding(self) -> list[Row]:
        """The real indexers that are shown to answer as exact Top-k does, the cheapest first."""
        held = [row for row in self.real if row["verdict"] in (GOOD, BETTER)]
        return sorted(held, key=_cost)

    def sentence(self) -> str:
        """The verdict in one sentence; that nothing is shown, where nothing is."""
        words = "; ".join([self._holds(), *self._misleads()])
        return words[:1].upper() + words[1:] + "."

    def _holds(self) -> str:
        margin, k, exact = f"{self.findings.margin:g}", self.budget, self.exact
        if not self.real:
            return self._enough() or "no indexer was run: nothing is shown of any"
        if exact is None:
            return f"nothing is shown: exact Top-k was not run at k = {k}, to which indexers are compared"
        if exact["accuracy"] is None:
            return f"nothing is shown: exact Top-k, to which indexers are compared, has no score at k = {k}"
        if exact["accuracy"] <= self.findings.margin:
            return f"nothing is shown: exact Top-k itself scores {exact['accuracy']:.2f} at k = {k}, and no loss of {margin} could show"
        if self.holding:
            best = self.holding[0]
            level = "better than exact Top-k (to audit)" if best["verdict"] == BETTER else f"as exact Top-k does (within {margin}, k = {k})"  # fmt: skip
            return f"`{best['name']}` answers {level}{at_cost(best['share'])}"
        worse = sum(row["verdict"] == WORSE for row in self.real)
        haystacks = len(self.findings.curve.haystacks)
        if worse == len(self.real):
            return f"every one of {worse} indexers answers worse than exact Top-k at k = {k}, by more than {margin}"
        return (
            f"nothing is shown to answer as exact Top-k does (within {margin}, k = {k}): of {len(self.real)} "
            f"indexers {worse} {'is' if worse == 1 else 'are'} worse, and {haystacks} {_plural('haystack', haystacks)} {'leaves' if haystacks == 1 else 'leave'} {len(self.real) - worse} undecided"
        )

    def _misleads(self) -> Iterator[str]:
        """That recall alone does not tell, where what passes has less of it than what fails."""
        ends = misled(self.shown)
        if ends is not None:
            fails, passes = ends
            yield f"recall alone misleads: a recall of {fails['recall']:.2f} can fail, one of {passes['recall']:.2f} can pass"

    def level(self) -> str:
        """What full attention and exact Top-k score, and from which k on exact Top-k is as good."""
        of, curve = self.findings, self.findings.curve
        dense, exact = curve.place(None), of.exact.get(of.budget)
        words: list[str] = []
        if dense is not None:
            words.append(f"Full attention scores {said(of.accuracy[dense])}")
        if exact is not None:
            words.append(f"exact Top-k at k = {of.budget} {said(of.accuracy[exact])}")
        if self.real and (told := self._enough()):
            words.append(told)
        return "; ".join(words) + "." if words else ""

    def _enough(self) -> str:
        """From which k on exact Top-k is as good as full attention; "" where they are not compared."""
        of, held = self.findings, self.enough
        if of.curve.place(None) is None or not of.exact:
            return ""
        within = f"(within {of.margin:g})"
        if held is not None:
            return f"exact Top-k is shown as good as full attention {within} from k = {held} on"
        return f"at no k that was run is exact Top-k shown as good as full attention {within}"

    @property
    def enough(self) -> Budget | None:
        """The least budget from which on exact Top-k is shown to be as good as full attention."""
        enough: Budget | None = None
        for budget in reversed(self.findings.curve.budgets):
            if budget in self.findings.exact:
                if self.findings.verdict(self.findings.exact[budget]) not in (GOOD, BETTER):
                    break
                enough = budget
        return enough

    def chosen(self) -> list[Row]:
        """Exact Top-k and the indexers to choose from: what holds, the cheapest first, then what may."""
        exact = [row for row in [self.exact] if row is not None and row["accuracy"] is not None]
        scored = [row for row in self.real if row["accuracy"] is not None]
        ends = misled(self.shown)
        order = sorted(scored, key=lambda row: (_ORDER[row["verdict"]], _cost(row) if row["verdict"] in (GOOD, BETTER) else -row["accuracy"]))  # fmt: skip
        best = _varied(order)[: MOST - len(exact)]
        fails = ends[0] if ends is not None and ends[0]["kind"] == "real" else None
        if fails is not None and fails not in best and len(best) > 1:
            best[-1] = fails
        return [*exact, *best]

    def settings(self, name: str) -> str:
        """In how many settings an indexer is as good as exact Top-k, and in how many worse."""
        verdicts = [self._by_setting[n].get(name) for n in range(len(self.each))]
        good = sum(v in (GOOD, BETTER) for v in verdicts)
        worse = sum(v == WORSE for v in verdicts)
        return f"as good in {good} of {len(verdicts)} settings, worse in {worse}"

    @cached_property
    def _by_setting(self) -> list[dict[str, str]]:
        return [
            {row["name"]: row["verdict"] for row in of.rows if row["budget"] == self.budget}
            for of in self.each
        ]


def misled(rows: Sequence[Row]) -> tuple[Row, Row] | None:
    """What fails at the greatest recall and what passes at the least, where the first has more of it."""
    judged = [
        row for row in rows if row["recall"] is not None and row["kind"] in ("real", "design")
    ]
    fails = [row for row in judged if row["verdict"] == WORSE]
    passes = [row for row in judged if row["verdict"] in (GOOD, BETTER)]
    if not fails or not passes:
        return None
    most = max(fails, key=lambda row: row["recall"])
    least = min(passes, key=lambda row: row["recall"])
    return (most, least) if round(most["recall"], 2) > round(least["recall"], 2) else None


def answers(all_findings: Sequence[Findings]) -> list[Answer]:
    """An answer a model: of its settings together where there are several, at the budget of most."""
    by_model: dict[str, list[Findings]] = {}
    for findings in all_findings:
        by_model.setdefault(findings.curve.model, []).append(findings)
    return [_together(of_model) for of_model in by_model.values()]


def _together(several: Sequence[Findings]) -> Answer:
    """Tasks with right answers that full attention can do, on the cells that all have."""
    first = several[0]
    budgets = [findings.budget for findings in several]
    budget = max(dict.fromkeys(budgets), key=budgets.count)
    at = [f for f in several if f.budget == budget]
    told = [f for f in at if not f.curve.running_text and _can(f)] or at[:1]
    if len(told) > 1 and len({f.curve.title for f in told}) == len(told):
        joined = as_one([findings.curve for findings in told])
        if any(kind == "real" for kind in _kinds(joined)):
            return Answer(Findings(joined, first.margin, budget), tuple(told))
    best = max(told, key=lambda f: len(f.curve.cells))
    return Answer(best, (best,))


def _can(of: Findings) -> bool:
    dense = of.curve.place(None)
    return dense is None or float(of.accuracy.value[dense]) > of.margin


def _kinds(curve: Curve) -> list[str]:
    return ["real"] * bool(curve.where("real"))


def _varied(order: Sequence[Row]) -> list[Row]:
    """The first two of each family and verdict before all others: five kinds of one thing are no choice."""
    seen, first, rest = Counter[tuple[str, str]](), list[Row](), list[Row]()
    for row in order:
        seen[row["family"], row["verdict"]] += 1
        (first if seen[row["family"], row["verdict"]] <= ALIKE else rest).append(row)
    return [*first, *rest]


def _cost(row: Row) -> float:
    return float("inf") if row["share"] is None else row["share"]


def _plural(word: str, count: int) -> str:
    return word if count == 1 else f"{word}s"
