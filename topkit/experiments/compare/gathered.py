"""The rows of all jobs as one comparison."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from topkit.errors import InputError
from topkit.experiments.compare.comparison import Comparison
from topkit.experiments.compare.layer import LayerRows, Question


def gathered(
    question: Question, margins: Mapping[str, float], parts: Sequence[LayerRows]
) -> Comparison:
    """The rows of all jobs.

    Raises: InputError where k covers everything.
    """
    parts = sorted(parts, key=lambda part: (part.sample, part.layer))
    digests: dict[int, tuple[str, ...]] = {}
    for part in parts:
        digests[part.sample] = (*digests.get(part.sample, ()), part.digest)
    different = list(dict.fromkeys(digests.values()))
    sequence = {sample: different.index(own) for sample, own in digests.items()}
    left_out = sum(part.left_out for part in parts)
    sizes = [len(part.columns["recall"]) for part in parts]
    if not sum(sizes):
        raise InputError(
            f"k = {question.budget} covers all that each of {left_out:,} rows sees, or the baseline lists "
            "nothing there: nothing is compared; give a smaller k, or longer sequences"
        )
    if len({part.of for part in parts}) > 1:
        raise InputError(
            "some layers have queries and keys of attention, and others an index alone; compare them apart"
        )
    rows = {name: np.concatenate([p.columns[name] for p in parts]) for name in parts[0].columns}
    of_part = {
        "sample": [part.sample for part in parts],
        "layer": [part.layer for part in parts],
        "sequence": [sequence[part.sample] for part in parts],
    }
    rows |= {name: np.repeat(x, sizes) for name, x in of_part.items()}
    return Comparison(question, margins, rows, left_out, parts[0].of)
