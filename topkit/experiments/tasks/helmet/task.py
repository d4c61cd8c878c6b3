"""HELMET's tasks, from its files."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, ClassVar

from topkit.documents import Schema
from topkit.errors import InputError
from topkit.experiments.tasks.files.lines import Rows, rows_of
from topkit.experiments.tasks.files.row import Row, without_tail
from topkit.experiments.tasks.files.task import FileTask
from topkit.experiments.tasks.forms import CHAT
from topkit.experiments.tasks.helmet.datasets import (
    DATASETS,
    LABELS,
    POPULARITY,
    dataset_of,
    require_dataset,
    shots_of,
)
from topkit.experiments.tasks.helmet.documents import (
    QUESTIONS,
    RANKINGS,
    answer_row,
    demonstrations,
    ranking_row,
)
from topkit.experiments.tasks.helmet.labels import LABELLED, label_of, label_row
from topkit.experiments.tasks.helmet.recall import NEEDLES, PAIRS, needle_row, pair_row
from topkit.grammar import later

Read = dict[str, Any]


@dataclass(frozen=True)
class Helmet(FileTask):
    """Rows of HELMET's files: Recall, RAG, Re-rank and ICL.

    task: the dataset, where the file's name does not say it; demos: the file of demonstrations, of ICL
    the training split; shots: how many are shown, -1: as many as HELMET shows. What is too long loses
    the end of its context.
    """

    name: ClassVar[str] = "helmet"
    source: ClassVar[str] = "HELMET, arXiv 2410.02694"
    asks: ClassVar[str] = "HELMET's Recall, RAG, Re-rank and ICL, of its files"
    paths: ClassVar[tuple[str, ...]] = ("file", "demos")
    shots_of_its_own: ClassVar[bool] = True
    example: ClassVar[str] = (
        "JSON lines of HELMET's data, as data/json_kv/test_k105_dep6.jsonl holds them"
    )

    task: str = ""
    demos: str = ""
    shots: int = later(-1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.task:
            require_dataset(self.task)
        if self.shots < -1:
            raise InputError(f"{self.name}: shots must be 0 or more; got {self.shots}")

    @property
    def dataset(self) -> str:
        """The dataset that it is. Raises: InputError where nothing says it."""
        _ = self.rows  # refuses what is no file
        known = self.task or dataset_of(self.file)
        if not known:
            raise InputError(
                f"cannot tell which of HELMET's datasets {self.file} is; say task=, of "
                f"{', '.join(DATASETS)}"
            )
        return known

    def most_samples(self) -> int | None:
        return len(self._asked())

    def row(self, number: int, length: int) -> Row:
        dataset, rows = self.dataset, self.rows
        at = self._asked()[number]
        read = rows.row(at, _schema(dataset), self.remedy)
        place = f"{rows.path}, {rows.places[at]}"
        shots = shots_of(dataset, length) if self.shots < 0 else self.shots
        row = self._worded(read, dataset, shots, place)
        if not row.references or not all(reference.strip() for reference in row.references):
            raise InputError(f"{place}: its answers must be one or more texts; {self.remedy}")
        # In chat HELMET leaves the beginning of the answer to the model.
        known = {"kind": dataset, "place": place, "cue_in_chat": False}
        rule = "label" if row.rule == "line" and self.form == CHAT else row.rule
        return replace(row, tokens=DATASETS[dataset][1], rule=rule, **known)

    def cut(self, row: Row, tokens: int, tokenizer: Any) -> Row | None:
        return without_tail(row, tokens, tokenizer)

    def _worded(self, read: Read, dataset: str, shots: int, place: str) -> Row:
        if dataset == "json_kv":
            _require_shots(len(read.get("demos", [])), shots, dataset, f"{place}: demos")
            return pair_row(read, shots)
        if dataset.startswith("ruler"):
            return needle_row(read, dataset.endswith("mv"), place)
        demos = self._demos(dataset, shots)
        if dataset in LABELS:
            label = label_of(read, dataset, place)
            pairs = [(demo["text"], label_of(demo, dataset, self.demos)) for demo in demos]
            labels = max(LABELS[dataset][0], label + 1, *(of + 1 for _, of in pairs))
            return label_row(read["text"], label, pairs, shots, labels)
        if not read["ctxs"]:
            raise InputError(f"{place}: ctxs is empty; {self.remedy}")
        key = _key(dataset, read)
        if dataset in ("kilt_popqa_3", "msmarco_rerank_psg"):
            # Of one split: a question is no demonstration of itself.
            demos = tuple(demo for demo in demos if demo.get(key) != read[key])
        shown = demonstrations(read, demos, key, shots) if shots else []
        _require_shots(len(shown), shots, dataset, f"{self.demos}, for {place},")
        return (ranking_row if key == "qid" else answer_row)(read, shown)

    def _demos(self, dataset: str, shots: int) -> tuple[Read, ...]:
        if not shots and dataset not in LABELS:
            return ()
        if not self.demos:
            raise InputError(
                f"{self.name}: {dataset} shows {shots} demonstrations; say demos=PATH of its "
                + ("training split" if dataset in LABELS else "file of them, or shots=0")
            )
        return _all(rows_of(self.demos, self.remedy), dataset, self.remedy)

    def _asked(self) -> tuple[int, ...]:
        """The numbers of the rows that are asked: of PopQA those of rare things."""
        if self.dataset != "kilt_popqa_3":
            return tuple(range(len(self.rows)))
        return _rare(self.rows, self.remedy)


def _require_shots(there: int, shots: int, dataset: str, what: str) -> None:
    """Raises: InputError for fewer demonstrations than are to be shown."""
    if there < shots:
        raise InputError(
            f"{what} holds {there} demonstrations, and {dataset} is to show {shots}; say shots={there}"
        )


def _schema(dataset: str) -> Schema:
    if dataset in LABELS:
        return LABELLED
    if dataset.startswith("ruler"):
        return NEEDLES
    if dataset == "json_kv":
        return PAIRS
    return RANKINGS if dataset.startswith("msmarco") else QUESTIONS


def _key(dataset: str, read: Read) -> str:
    if dataset.startswith("msmarco"):
        return "qid"
    return "id" if "id" in read else "question"


@lru_cache(maxsize=4)
def _all(rows: Rows, dataset: str, remedy: str) -> tuple[Read, ...]:
    """Every row that may be a demonstration."""
    chosen = _rare(rows, remedy) if dataset == "kilt_popqa_3" else range(len(rows))
    return tuple(rows.row(number, _schema(dataset), remedy) for number in chosen)


@lru_cache(maxsize=4)
def _rare(rows: Rows, remedy: str) -> tuple[int, ...]:
    """The rows of PopQA whose subject is looked up seldom."""
    read = (
        rows.row(number, {**QUESTIONS, "s_pop": QUESTIONS["s_pop?"]}, remedy)
        for number in range(len(rows))
    )
    return tuple(
        number for number, row in enumerate(read) if math.log10(max(row["s_pop"], 1)) < POPULARITY
    )
