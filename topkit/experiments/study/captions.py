"""The standing words of a report: what it does not show, captions, how it was computed."""

# pyright: strict
from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

NOT_SHOWN = (
    "Other models. {models}; a larger one, or one trained otherwise, may notice sooner or later.",
    "A sparse prefill. The haystack was always read densely; selectors ran from {sparse_from} on.",
    "Speed. Bytes read are counted by formula, not timed.",
    "Where errors fall. Recall and mass are means over layers, heads and steps; two indexers of equal "
    "means may lose different keys.",
    "That fidelity causes accuracy among real indexers: they differ in more than fidelity. The oracles "
    "change precision alone, but each in one manner of loss.",
    "Anything about indexers that were not run. Families of real indexers are treated as a sample, of which "
    "there are few; oracles were chosen, and are none.",
    "Intervals that hold all at once: each holds at 95 % by itself, so of {cells} cells one or two may "
    "lie outside theirs.",
)

_MARKS = "Filled: shown as good as exact Top-k at the same k; pale: undecided; hollow: shown worse. Bars: 95 % intervals."
_FIDELITY = (
    "as observed in the runs that were scored. Dashed lines through small circles: oracles, exact Top-k with a known "
    f"share of keys lost, a dash a manner of loss. {_MARKS}"
)
_NULL = (
    " Dotted: exact Top-k's score times p^m, which chance alone would leave if each of the m tokens that need a key "
    "lost it anew with probability 1 - p. The m tokens are those that a short window on the end of the context "
    "gets wrong; where no such window was run, there is no dotted line."
)
_BYTES = (
    "Bytes that a decoding step reads to choose its keys, over what exact Top-k reads for it, which is every key; reading "
    "the chosen keys and values is the same for all and not counted. The axis is linear near 0."
)
CAPTIONS = {
    "cost": f"Accuracy against cost. {_BYTES} The step is the Pareto front: what no other reaches at as few bytes. Level "
    f"lines: exact Top-k, and the margin below it. {_MARKS}",
    "k": "Each recipe at its budgets, which stand at the keys that were kept on average: a budget of 1 % at as many keys "
    "as that is, one that keeps fewer than k where it keeps them. The dashed line is full attention, its band the "
    "interval. Oracles that lose keys are drawn where they were run at several budgets. Bars: 95 % intervals.",
    "recall": f"Accuracy against recall, {_FIDELITY}{_NULL}",
    "mass": "The same against mass. Dotted: the same, at the share p of exact Top-k's mass.",
    "ws": "The same against the weight that the heads which read the answer give to its key after selection.",
    "heads": "Mean recall of each layer and query head, against that head's own exact Top-k.",
    "again": f"Accuracy against cost, as in the first figure. {_MARKS}",
    "bytes": "What the bytes buy of fidelity; the axis is that of the first figure.",
    "nll_gap": "NLL of the true answer minus full attention's, nats a token: lower is better. Bars: 95 % intervals.",
    "kl": "KL of the next token from full attention's, nats a token: lower is better.",
}


def alt_of(figure: str, rows: Sequence[Mapping[str, Any]], budget: str) -> str:
    """What a figure shows, for those who do not see it: what is drawn, and its ends."""
    drawn = [row for row in rows if row["kind"] in ("real", "control", "oracle", "exact")]
    scored = [row for row in drawn if row["accuracy"] is not None]
    at = f" at k = {budget}" if budget else ""
    words = f"{_ALT[figure]} of {len({row['name'] for row in drawn})} indexers{at}."
    if not scored:
        return words
    best, worst = (of(scored, key=lambda row: row["accuracy"]) for of in (max, min))
    ends = (f"{row['name']} {row['accuracy']:.2f}" for row in (worst, best))
    front = [row for row in drawn if row["front"] and row["share"] is not None]
    steps = ", ".join(f"{row['name']} {row['accuracy']:.2f} at {row['share']:.2f}" for row in sorted(front, key=lambda row: row["share"]))  # fmt: skip
    told = f" The front: {steps}." if figure in ("cost", "again") and steps else ""
    return f"{words} Accuracy from {' to '.join(ends)}.{told}"


_ALT = {
    "cost": "Accuracy against the bytes read to choose keys",
    "again": "Accuracy against the bytes read to choose keys",
    "k": "Accuracy against the keys kept",
    "recall": "Accuracy against recall",
    "mass": "Accuracy against attention mass",
    "ws": "Accuracy against the answer-key weight",
    "bytes": "Fidelity against the bytes read to choose keys",
    "nll_gap": "NLL minus full attention's against the bytes read to choose keys",
    "kl": "KL from full attention against the bytes read to choose keys",
}

METHOD = (
    "Accuracy: the score of what was said, by the rule of the task's format; of books and recite, the share of "
    "the true answer's tokens that were the likeliest. Its mean over questions, with Wilson's interval on the effective number of questions (of "
    "tokens, where each is right or wrong), which is their number over the cell's own design effect of "
    "sharing haystacks, shrunk by the weight of one question towards each haystack counting as one, and "
    "over the square of Student's quantile over the normal's. A bootstrap over haystacks would give cells "
    "at 0 or 1 no width at all.",
    "NLL is of the true answer, KL from full attention's next token, in nats a token; their intervals, and "
    "those of NLL's paired differences, are Student's over haystacks.",
    "Differences: paired on haystacks, the two Wilson intervals joined with their correlation over "
    "haystacks (Donner and Zou).",
    "Predictions: accuracy as the best curve that never falls of recall, or of mass, through the cells of all "
    "families but one, each family counting once; the mean error on the one left out, with Student's interval "
    "over families. From neither: by the mean of the others. A combinator is of the family of what it combines.",
    "Correlations: Spearman's over families at the one budget, each the mean of its cells, with percentile "
    "intervals of a bootstrap that draws haystacks and families anew (4000 draws, fixed seed), widened by Student's quantile over the normal's. Oracles are "
    "design points: of them there are estimates and no intervals. Controls and exact Top-k are left out. Where "
    "accuracy is within 0.01 of 0 or 1 for most cells, minus NLL stands for it.",
    "Recall is judged a query head against its own exact Top-k; rows where every visible key fits in k "
    "are left out.",
)

TWO_MODELS = (
    "Two models: of the budgets at which most indexers ran, those at which exact Top-k scores between 0.3 and 0.95 "
    "with the model, or all where there is none; on the tasks and lengths that both have, or all of each "
    "where there are none. An indexer's score is the mean over these; families are means of their indexers. "
    "Spearman's and Kendall's correlations with percentile intervals of a bootstrap that draws haystacks and "
    "families anew (2000 draws, fixed seed), widened as above; moves draw haystacks alone.",
)
