"""Accuracy as rows: one for each question and cell; and what was said, for people to read."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from topkit.experiments.evaluate.answers import Answer
from topkit.experiments.evaluate.own_words import Stops
from topkit.experiments.runs.cells import Cell
from topkit.experiments.runs.parts import write_whole
from topkit.experiments.tasks import Prompt, rule_of, ruler_part

_WORDS = ("task", "wording", "family", "indexer", "budget", "sparse_from", "rule")
_TEXTS = ("asked", "answer", "said", "said_until")
_NUMBERS = ("exact_match", "score", "score_any", "token_accuracy", "nll", "kl")
_COUNTS = (
    "length",
    "haystack",
    "question",
    "tokens",
    "k",
    "first_divergence",
    "answer_tokens",
    "said_tokens",
)
SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in _WORDS),
        *((name, pa.int64()) for name in _COUNTS),
        *((name, pa.float64()) for name in _NUMBERS),
        *((name, pa.string()) for name in _TEXTS),
        ("references", pa.list_(pa.string())),
    ]
)
# One row a question and cell, in this order.
KEYS = ("task", "length", "sparse_from", "haystack", "question", "indexer", "budget")


def accuracy_rows(
    prompt: Prompt,
    constants: Mapping[str, Any],
    cell: Cell,
    answers: Sequence[Answer],
    dense: Sequence[Answer],
    context: int,
    stops: Stops,
) -> list[dict[str, Any]]:
    """The rows of one cell's answers; `dense` are those of full attention, in the same order."""
    rows, rule = [], rule_of(prompt.rule)
    for answer, full in zip(answers, dense, strict=True):
        question = prompt.questions[answer.question]
        said, until = stops.read(answer.said)
        right = [a == b for a, b in zip(answer.likeliest, question.answer_ids, strict=True)]
        apart = [a != b for a, b in zip(answer.likeliest, full.likeliest, strict=True)]
        judged = bool(question.references)  # running text has no right answer
        rows.append(
            {
                **constants,
                **cell.columns,
                "wording": prompt.wording,
                "family": prompt.family,
                "rule": prompt.rule if judged else None,
                "question": answer.question,
                "tokens": prompt.tokens(answer.question),
                "k": cell.k(context),
                "exact_match": float(all(right)) if judged else None,
                "score": rule(said, question.references) if judged else None,
                "score_any": ruler_part(said, question.references) if judged else None,
                "token_accuracy": float(np.mean(right)),
                "nll": float(np.mean(answer.nll)),
                "kl": float(np.mean(answer.kl)),
                "first_divergence": apart.index(True) if any(apart) else None,
                "answer_tokens": len(right),
                "said_tokens": len(answer.said) if judged else None,
                "asked": question.text,
                "answer": question.answer,
                "said": said,
                "said_until": until if judged else None,
                "references": list(question.references),
            }
        )
    return rows


def in_order(rows: pa.Table) -> pa.Table:
    """The rows in the order of what names them."""
    return rows.sort_by([(key, "ascending") for key in KEYS])


def write_predictions(table: pa.Table, path: Path) -> None:
    """What was said, one JSON line a row of the table."""
    names = [*KEYS, "wording", "asked", "references", "answer", "said", "exact_match", "score"]
    rows = table.select(names).rename_columns({"said": "prediction"}).to_pylist()
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    write_whole(path, lambda to: to.write_text(text, encoding="utf-8"), parents=False)
