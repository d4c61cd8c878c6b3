"""HELMET's ICL: texts with labels, which are numbers drawn anew for each question."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from typing import Any

from topkit.documents import Prose, Whole
from topkit.errors import InputError
from topkit.experiments.tasks.files.row import Row

FIELDS = ("fine_label", "coarse_label", "intent", "label")
LABELLED = {"text": Prose, **{f"{field}?": Whole() for field in FIELDS}}
# HELMET's, of every run.
SEED = 42


def label_of(read: dict[str, Any], dataset: str, place: str) -> int:
    """The label of a text. Raises: InputError where it has none."""
    fields = sorted(FIELDS, key=lambda field: field not in f"{dataset}_label")
    known = [read[field] for field in fields if field in read]
    if not known:
        raise InputError(f"{place}: label is missing; expected one of {', '.join(FIELDS)}")
    return known[0]


def label_row(
    text: str, label: int, demos: Sequence[tuple[str, int]], shots: int, labels: int
) -> Row:
    """A row of icl_*: demonstrations of every label in turn, then the text."""
    seed = (int(hashlib.sha256(text.encode()).hexdigest(), 16) + SEED) % 2**31
    shown = balanced(demos, shots, seed)
    numbers = list(range(labels))
    random.Random(seed).shuffle(numbers)
    context = "\n\n".join(f"{said}\nlabel: {numbers[of]}" for said, of in shown)
    return Row(
        before="Use the provided mapping from the text to label to assign a label to the text. Only "
        'output "label: {label}" and nothing else. \n\n',
        context=context,
        after=f"\n\n{text}",
        cue="\nlabel:",
        answer=f" {numbers[label]}",
        references=(str(numbers[label]),),
        rule="line",
        tokens=0,
    )


def balanced(demos: Sequence[tuple[str, int]], shots: int, seed: int) -> list[tuple[str, int]]:
    """So many demonstrations in rounds: each has every label once, in an order of its own."""
    rng = random.Random(seed)
    by_label: dict[int, list[tuple[str, int]]] = {}
    for demo in demos:
        by_label.setdefault(demo[1], []).append(demo)
    count = -(-shots // len(by_label))
    rounds: list[list[tuple[str, int]]] = [[] for _ in range(count)]
    for some in by_label.values():
        places = rng.sample(range(len(some)), count % len(some))
        while len(places) < count:
            places += rng.sample(range(len(some)), min(count - len(places), len(some)))
        for one, place in zip(rounds, places, strict=True):
            one.append(some[place])
    for one in rounds:
        rng.shuffle(one)
    return [demo for one in rounds for demo in one][:shots]
