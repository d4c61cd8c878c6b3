"""The standing words of a report: what it does not show, captions, how it was computed."""

# pyright: strict
from __future__ import annotations

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

CAPTIONS = {
    "k": "Each recipe at its budgets, which stand at the keys that were kept on average: a budget of 1 % at as "
    "many keys as that is, one that keeps fewer than k where it keeps them. Numbers stand beside the last "
    "point of a line. The dashed line is full attention, its band the interval. Oracles that lose keys are drawn "
    "where they were run at several budgets. Bars: 95 % intervals.",
    "fidelity": "Accuracy against recall and against mass, both as observed in the runs that were "
    "scored. Lines: oracles, exact Top-k with a known share of keys lost. Numbered points: real "
    "indexers and the control. Dotted: exact Top-k's score times p^m, which chance alone "
    "would leave if each of the m tokens that need a key lost it anew with probability 1 - p; in the right "
    "panel at the share p of exact Top-k's mass. The m tokens are those that a short window on the end of the "
    "context gets wrong; where no such window was run, there is no dotted line. Bars: 95 % intervals.",
    "heads": "Mean recall of each layer and query head, against that head's own exact Top-k.",
    "bytes": "What a decoding step reads to choose its keys, a layer, against the fidelity that it "
    "buys; reading the chosen keys and values is the same for all and not counted. Dashed: every "
    "key read. The axis is linear below 1 KiB.",
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
